//! Guests: viewers that come and go over RTSP by the hundred beside others that stay.
//!
//! Cameras, proxy and viewers of a [`Party`] are in namespaces of their own; every packet carries its number and
//! everybody accounts for each. Which of them the kernel sent a guest tells by their time to live: the sockets of the
//! proxy's namespace have another default than what the kernel's program writes.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use msm_tests::camera::{Stage, Transport};
use msm_tests::probe::{Account, Cameras, Load, Viewers, first_control};
use msm_tests::process::{Scratch, wait_for};
use msm_tests::proxy::{Options, Proxy};
use msm_tests::rtsp::Connection;
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};

use crate::kernel_scene::{LIMIT, Scene};

const INPUT: &str = "10.7.1.1";
const OUTPUT: &str = "10.7.2.1";
/// One more than these addresses have guests, `10.7.2.` and this: the proxy takes 20 SETUPs a second of each.
const GUESTS_FROM: u8 = 10;
pub(crate) const GUEST_ADDRESSES: u8 = 80;
/// Time to live of what sockets in the proxy's namespace send; the kernel's program writes 64.
const WORKERS_TTL: u8 = 63;
/// Streams, viewers of each that stay, and guests at once where no more are asked for.
pub(crate) const STREAMS: usize = 8;
pub(crate) const STEADY: usize = 2;
pub(crate) const GUESTS: usize = 240;

/// How many a second, how many in all, how many of them at once at most, and how long each stays after its first packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Storm {
    pub(crate) rate: u32,
    pub(crate) total: u64,
    pub(crate) seats: usize,
    pub(crate) stay: fn(u64) -> Duration,
}

/// One whole visit.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Visit {
    /// SETUP and PLAY to their answers, TEARDOWN to its answer, in seconds.
    pub(crate) setup: f64,
    pub(crate) play: f64,
    pub(crate) leave: f64,
    /// From the request to its first packet.
    pub(crate) play_to_packet: f64,
    pub(crate) setup_to_packet: f64,
    pub(crate) packets: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    /// Packets that the kernel sent, and how many came before the first of them.
    pub(crate) carried: u64,
    pub(crate) before_carried: Option<u64>,
    /// The first packet is not the one that RTP-Info named.
    pub(crate) inexact: bool,
    /// Behind its time when it began, in seconds.
    pub(crate) late: f64,
}

/// A seat that one guest after another takes: an RTSP connection and a pair of ports.
struct Seat {
    connection: Connection,
    rtp: UdpSocket,
    _rtcp: UdpSocket,
    port: u16,
}

impl Seat {
    fn new(local: IpAddr, url: &str) -> Result<Self> {
        for _ in 0..200 {
            let rtp = UdpSocket::bind((local, 0))?;
            let port = rtp.local_addr()?.port();
            if !port.is_multiple_of(2) {
                continue;
            }
            if let Ok(rtcp) = UdpSocket::bind((local, port + 1)) {
                rtp.set_read_timeout(Some(Duration::from_secs(5)))?;
                setsockopt(&rtp, sockopt::Ipv4RecvTtl, &true)?;
                // What this machine drops because a guest gets no CPU would look like the proxy's loss.
                setsockopt(&rtp, sockopt::RcvBufForce, &(1 << 20))?;
                return Ok(Self {
                    connection: Connection::open_from(url, Some(local))?,
                    rtp,
                    _rtcp: rtcp,
                    port,
                });
            }
        }
        bail!("no free pair of UDP ports")
    }

    /// SETUP, PLAY, media for a while, TEARDOWN. `camera`: whose packets are the guest's.
    fn visit(&mut self, (base, control): &(String, String), camera: u32, stay: Duration) -> Result<Visit> {
        let Self { connection, rtp, port, .. } = self;
        // What an earlier guest was sent at the very end is not this one's.
        take_all(rtp, camera, &mut Vec::new())?;
        let offer = format!("RTP/AVP;unicast;client_port={port}-{}", *port + 1);
        connection.session = None;
        let begun = Instant::now();
        connection.request("SETUP", control, &[("Transport", &offer)], "")?.ok()?;
        let set_up = Instant::now();
        let answer = connection.request("PLAY", base, &[("Range", "npt=now-")], "")?.ok()?;
        let played = Instant::now();
        let promised: u16 = answer
            .header("RTP-Info")
            .and_then(|info| info.split("seq=").nth(1)?.split(';').next()?.parse().ok())
            .context("RTP-Info")?;
        let mut taken: Vec<Taken> = Vec::new();
        let until = Instant::now() + LIMIT;
        while taken.is_empty() && Instant::now() < until && take(rtp, camera, MsgFlags::empty(), &mut taken) {
        }
        let first = Instant::now();
        let promised_first = taken.first().context("not one packet came")?.sequence == promised;
        // The rest waits in the socket: nobody is woken for it.
        std::thread::sleep(stay);
        let leaving = Instant::now();
        connection.request("TEARDOWN", base, &[], "")?.ok()?;
        let left = Instant::now();
        take_all(rtp, camera, &mut taken)?;
        let place = |packet: &Taken| packet.sequence.wrapping_sub(promised) as i16;
        let by_kernel = || taken.iter().filter(|packet| packet.by_kernel).map(place);
        let before_carried = by_kernel().min().and_then(|place| u64::try_from(place).ok());
        let carried = by_kernel().count() as u64;
        let mut places: Vec<i16> = taken.iter().map(place).collect();
        places.sort_unstable();
        let doubled = places.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64;
        let lost = places.windows(2).map(|pair| (pair[1] - pair[0] - 1).max(0) as u64).sum();
        if lost > 0 {
            let gaps: Vec<_> = places.windows(2).filter(|pair| pair[1] - pair[0] > 1).collect();
            eprintln!(
                "camera {camera}, stay {stay:?}: {} packets, gaps {gaps:?}, {} dropped at the socket",
                places.len(),
                dropped(rtp)
            );
        }
        let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
        Ok(Visit {
            setup: seconds(begun, set_up),
            play: seconds(set_up, played),
            leave: seconds(leaving, left),
            play_to_packet: seconds(set_up, first),
            setup_to_packet: seconds(begun, first),
            packets: taken.len() as u64,
            lost,
            doubled,
            carried,
            before_carried,
            inexact: !promised_first,
            late: 0.0,
        })
    }
}

/// Datagrams that this machine dropped at a socket, ever.
fn dropped(socket: &UdpSocket) -> u32 {
    let mut words = [0_u32; 9];
    let mut length = size_of_val(&words) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to what `words` points to.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            words.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done == 0 { words[8] } else { 0 }
}

/// A packet of a guest's camera.
#[derive(Debug, Clone, Copy)]
struct Taken {
    sequence: u16,
    by_kernel: bool,
}

/// Receives a packet and notes it if it is this camera's; false where none came.
fn take(socket: &UdpSocket, camera: u32, flags: MsgFlags, taken: &mut Vec<Taken>) -> bool {
    let mut packet = [0; 2048];
    let mut control = cmsg_space!(i32);
    let mut slices = [IoSliceMut::new(&mut packet)];
    let Ok(message) = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) else {
        return false;
    };
    let ttl = message.cmsgs().ok().and_then(|mut all| {
        all.find_map(|one| if let ControlMessageOwned::Ipv4Ttl(ttl) = one { Some(ttl) } else { None })
    });
    let length = message.bytes;
    if let Some([a, b, c, d]) = packet[..length].get(13..17).and_then(|bytes| bytes.first_chunk())
        && u32::from_be_bytes([*a, *b, *c, *d]) == camera
    {
        let by_kernel = ttl.is_some_and(|ttl| ttl != i32::from(WORKERS_TTL));
        taken.push(Taken { sequence: u16::from_be_bytes([packet[2], packet[3]]), by_kernel });
    }
    true
}

/// The same with everything that waits.
fn take_all(socket: &UdpSocket, camera: u32, taken: &mut Vec<Taken>) -> Result<()> {
    socket.set_nonblocking(true)?;
    while take(socket, camera, MsgFlags::MSG_DONTWAIT, taken) {}
    Ok(socket.set_nonblocking(false)?)
}

/// What guests met.
#[derive(Debug, Default)]
pub(crate) struct Visits {
    pub(crate) done: Vec<Visit>,
    /// Why others came to nothing, and how often.
    pub(crate) failed: BTreeMap<String, u64>,
    pub(crate) seconds: f64,
}

impl Visits {
    pub(crate) fn sum(&self, value: fn(&Visit) -> u64) -> u64 {
        self.done.iter().map(value).sum()
    }

    /// Every guest was served, and got everything from the number on that it was told.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.failed.is_empty(), "{} came, others did not: {:#?}", self.done.len(), self.failed);
        ensure!(!self.done.is_empty(), "nobody came");
        let found = (self.sum(|v| v.lost), self.sum(|v| v.doubled), self.sum(|v| u64::from(v.inexact)));
        ensure!(
            found == (0, 0, 0),
            "guests: lost, doubled, inexact RTP-Info {found:?} of {}",
            self.done.len()
        );
        Ok(())
    }
}

/// What the viewers that stayed got.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Stayed {
    pub(crate) packets: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) reordered: u64,
    pub(crate) wrong: u64,
}

impl Stayed {
    pub(crate) fn check(&self) -> Result<()> {
        let bad = self.lost + self.doubled + self.wrong;
        ensure!(self.packets > 0 && bad == 0, "those who stayed: {self:?}");
        Ok(())
    }
}

/// Cameras, the proxy, and viewers that stay and are on rung `tcx`.
pub(crate) struct Party {
    pub(crate) proxy: Proxy,
    cameras: Cameras,
    viewers: Viewers,
    outputs: Vec<String>,
    _scratch: Scratch,
}

impl Party {
    pub(crate) fn start(scene: &Scene, name: &str, load: Load) -> Result<Self> {
        let device = scene.viewer.output("sh", &["-c", "ls /sys/class/net | grep '^v'"])?;
        for n in 0..GUEST_ADDRESSES {
            let address = format!("10.7.2.{}/24", GUESTS_FROM + n);
            scene.viewer.ip(&["addr", "add", &address, "dev", device.trim()])?;
        }
        let scratch = Scratch::new(name)?;
        let bpffs = scene.bpffs.path().display().to_string();
        let ttl = WORKERS_TTL.to_string();
        scene.node.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_default_ttl", ttl))??;
        let flags = ["--bpffs", &bpffs, "--log-level", "warn", "--max-connections", "4096"];
        let flags = flags.map(str::to_owned).to_vec();
        let options = Options { flags, ..Options::default() };
        let proxy = Proxy::start(Stage::inside(scratch.path(), &scene.node), "proxy", &options)?;
        let urls = |host: &str| -> Vec<_> {
            (0..STREAMS).map(|n| proxy.url_at(host, &format!("cam-{n}"))).collect()
        };
        let (inputs, outputs) = (urls(INPUT), urls(OUTPUT));
        let cameras = Cameras::publish(&inputs, Transport::Udp, load, Some(&scene.camera))?;
        let mut viewers = Viewers::start()?;
        for url in &outputs {
            for _ in 0..STEADY {
                viewers.play(url, Transport::Udp, Some(&scene.viewer))?;
            }
        }
        let party = Self { proxy, cameras, viewers, outputs, _scratch: scratch };
        wait_for("the legs on tcx", LIMIT, || (party.on("tcx").ok()? == STREAMS * STEADY).then_some(()))?;
        Ok(party)
    }

    /// Legs on a rung.
    pub(crate) fn on(&self, rung: &str) -> Result<usize> {
        Ok(self.proxy.metric("msm_legs", &[&format!("rung=\"{rung}\"")])? as usize)
    }

    /// Lets the guests come and waits until all are gone. `done` counts the visits meanwhile.
    pub(crate) fn storm(&self, scene: &Scene, storm: Storm, done: &AtomicU64) -> Result<Visits> {
        let visits = scene.viewer.inside(|| visit_all(&self.outputs, storm, done))??;
        wait_for("all guests to be gone", LIMIT, || {
            let (users, kernel) = (self.on("user").ok()?, self.on("tcx").ok()?);
            (users == 0 && kernel == STREAMS * STEADY).then_some(())
        })?;
        Ok(visits)
    }

    /// Ends everything. Returns what the viewers that stayed got, and the log of the proxy.
    pub(crate) fn end(mut self, scene: &Scene) -> Result<(Stayed, String)> {
        ensure!(self.cameras.unsent() == 0, "this machine did not send everything");
        self.cameras.stop();
        std::thread::sleep(Duration::from_millis(500));
        ensure!(self.viewers.overflows(Some(&scene.viewer))? == 0, "this machine dropped packets itself");
        let mut stayed = Stayed::default();
        for viewer in 0..STREAMS * STEADY {
            ensure!(!self.viewers.is_closed(viewer), "a viewer was disconnected");
            let account = self.viewers.account(viewer);
            stayed.packets += account.packets;
            stayed.lost += Account::lost(&account);
            stayed.doubled += account.doubled;
            stayed.reordered += account.reordered;
            stayed.wrong += account.wrong + account.ssrc_changes;
        }
        drop(self.viewers);
        self.proxy.terminate(LIMIT)?;
        Ok((stayed, self.proxy.process.log()))
    }
}

/// Guests come at their times, whether the ones before them were served or not, as long as there are seats.
fn visit_all(urls: &[String], storm: Storm, done: &AtomicU64) -> Result<Visits> {
    let mut controls = Vec::new();
    for url in urls {
        let mut connection = Connection::open(url, None)?;
        let described = connection.request("DESCRIBE", url, &[("Accept", "application/sdp")], "")?.ok()?;
        let base = described.header("Content-Base").unwrap_or(url).to_owned();
        controls.push((base, first_control(&described, url)));
    }
    let mut seats = Vec::new();
    for n in 0..storm.seats {
        let local = Ipv4Addr::new(10, 7, 2, GUESTS_FROM + (n % usize::from(GUEST_ADDRESSES)) as u8);
        seats.push(Seat::new(local.into(), &urls[0])?);
    }
    let (next, started) = (AtomicU64::new(0), Instant::now());
    let guests = std::thread::scope(|scope| {
        let threads: Vec<_> = seats
            .into_iter()
            .map(|mut seat| {
                let (next, controls) = (&next, &controls);
                scope.spawn(move || {
                    let mut visits = Visits::default();
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= storm.total {
                            return visits;
                        }
                        let at = started + Duration::from_secs_f64(n as f64 / f64::from(storm.rate));
                        std::thread::sleep(at.saturating_duration_since(Instant::now()));
                        let late = Instant::now().saturating_duration_since(at).as_secs_f64();
                        let camera = n as usize % controls.len();
                        match seat.visit(&controls[camera], camera as u32, (storm.stay)(n)) {
                            Ok(visit) => visits.done.push(Visit { late, ..visit }),
                            Err(error) => *visits.failed.entry(format!("{error:#}")).or_default() += 1,
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    let mut all = Visits { seconds: started.elapsed().as_secs_f64(), ..Visits::default() };
    for visits in guests {
        let visits = visits.map_err(|_| anyhow::anyhow!("a guest panicked"))?;
        all.done.extend(visits.done);
        for (why, count) in visits.failed {
            *all.failed.entry(why).or_default() += count;
        }
    }
    Ok(all)
}

/// CPU time of all threads of the proxy.
pub(crate) fn cpu_seconds(proxy: &Proxy) -> Result<f64> {
    // The process is `ip netns exec`'s own: it becomes the proxy.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", proxy.process.pid()))?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}
