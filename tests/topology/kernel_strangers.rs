//! A flood of strangers to the port of a camera that the kernel forwards ends in the kernel.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use msm_tests::camera::Transport;
use msm_tests::lab::Node;
use msm_tests::probe::wire::{Rtp, word_at};
use msm_tests::probe::{Publisher, VIDEO};
use rtp_proxy::commands;

use crate::kernel_batching::{CAMERA, House, INPUT, packet, record};
use crate::kernel_scene::{LIMIT, Scene};

/// Addresses that are not the camera's.
const STRANGERS: [[&str; 3]; 2] =
    [["10.7.1.100", "10.7.1.101", "10.7.1.102"], ["fd07:1::100", "fd07:1::101", "fd07:1::102"]];
/// A camera that comes back is seen again within this time (M03).
const BACK: Duration = Duration::from_secs(5);

/// Datagrams that sockets of a node have got, or for which there was no socket or no room.
fn datagrams(node: &Node) -> Result<u64> {
    let table = node.output("cat", &["/proc/net/snmp"])?;
    let mut lines = table.lines().filter(|line| line.starts_with("Udp: "));
    let values = lines.nth(1).context("the values of Udp")?;
    // InDatagrams, NoPorts, InErrors.
    let v4: u64 =
        values.split_whitespace().skip(1).take(3).filter_map(|value| value.parse::<u64>().ok()).sum();
    let table = node.output("cat", &["/proc/net/snmp6"])?;
    let v6 = table.lines().filter_map(|line| {
        let (name, value) = line.split_once(char::is_whitespace)?;
        let counts = ["Udp6InDatagrams", "Udp6NoPorts", "Udp6InErrors"].contains(&name);
        if counts { value.trim().parse::<u64>().ok() } else { None }
    });
    Ok(v4 + v6.sum::<u64>())
}

impl House {
    /// The camera sends until so many ports are closed to strangers.
    fn until_closed(&mut self, ports: usize) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            for _ in 0..20 {
                self.burst(1)?;
                std::thread::sleep(Duration::from_millis(5));
                self.player.receive();
            }
            let said = self.status()?;
            if said.contains(&format!(" {ports} ports closed")) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "waited for {ports} closed ports: {said}");
        }
    }

    fn status(&self) -> Result<String> {
        let (admin, bpffs) = ("127.0.0.1:8081".parse()?, self.scene.bpffs.path());
        Ok(self.scene.node.inside(|| commands::status::run(admin, &bpffs))?.text)
    }

    fn strange(&self) -> Result<u64> {
        let labels = [r#"reason="unknown_source""#];
        Ok(self.proxy.metric("msm_dropped_packets_total", &labels)? as u64)
    }

    /// Numbers inside the packets that the viewer got.
    fn numbers(&self) -> Vec<u32> {
        self.player.media[0].iter().map(|packet| word_at(packet, 14)).collect()
    }
}

fn flooded(test: &str, family: usize) -> Result<()> {
    let Some(mut house) = House::new(test, family, &[])? else { return Ok(()) };
    let device = house.scene.inner.replace('a', "b");
    let prefix = ["/24", "/64"][family];
    // Another port of the camera's own address is a stranger's, too.
    let mut sources = vec![format!("{}:0", bracketed(CAMERA[family]))];
    for address in STRANGERS[family] {
        let nodad: &[&str] = if family == 1 { &["nodad"] } else { &[] };
        let address_prefix = format!("{address}{prefix}");
        house.scene.camera.ip(&[&["addr", "add", &address_prefix, "dev", &device], nodad].concat())?;
        sources.push(format!("{}:0", bracketed(address)));
    }
    house.until_closed(1)?;
    let bind = || sources.iter().map(UdpSocket::bind).collect::<Result<Vec<_>, _>>();
    let sockets = house.scene.camera.inside(bind)??;
    let input = house.publisher.input(0);
    assert_eq!(input.is_ipv6(), family == 1);
    let (strange, seen) = (house.strange()?, datagrams(&house.scene.node)?);
    // What they send would continue the run.
    let mut sent = 0;
    for _ in 0..400 {
        house.burst(1)?;
        for socket in &sockets {
            for ahead in 0..10 {
                socket.send_to(&packet(house.number + ahead), input)?;
                sent += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(1));
        house.player.receive();
    }
    house.is_whole()?;
    let up = datagrams(&house.scene.node)? - seen;
    assert_eq!(house.strange()? - strange, sent, "each of them is counted");
    assert!(up < 100, "{up} of {sent} datagrams went up to a socket");
    let said = house.status()?;
    assert!(said.contains("dropped (unknown_source)"), "{said}");

    // A source that is silent might come in by another way next: the worker is to see it.
    let deadline = Instant::now() + LIMIT;
    while !house.status()?.contains(" 0 ports closed") {
        ensure!(Instant::now() < deadline, "{}", house.status()?);
        std::thread::sleep(Duration::from_millis(50));
    }
    let seen = datagrams(&house.scene.node)?;
    sockets[1].send_to(&packet(house.number), input)?;
    let deadline = Instant::now() + LIMIT;
    while datagrams(&house.scene.node)? == seen {
        ensure!(Instant::now() < deadline, "it did not go up");
        std::thread::sleep(Duration::from_millis(5));
    }
    house.until_closed(1)?;
    house.is_whole()?;

    // It lost its power and comes back from another port.
    let former = house.publisher.input(0);
    let url = house.proxy.url_at(INPUT[family], "cam");
    let again = house.scene.camera.inside(|| record(&url, family))??;
    let old = std::mem::replace(&mut house.publisher, again);
    let (first, back_by) = (house.number, Instant::now() + BACK);
    while house.numbers().last().is_none_or(|last| *last < first) {
        ensure!(
            Instant::now() < back_by,
            "not seen within {BACK:?}; from {former} to {:?}",
            house.publisher.input(0)
        );
        house.burst(1)?;
        std::thread::sleep(Duration::from_millis(5));
        house.player.receive();
    }
    drop(old);
    house.until_closed(1)?;
    let packets = house.player.packets(0);
    let in_row =
        |pair: &[Rtp]| pair[1].sequence == pair[0].sequence.wrapping_add(1) && pair[1].ssrc == pair[0].ssrc;
    assert!(packets.windows(2).all(in_row), "one SSRC and no gap in its numbers");
    let numbers = house.numbers();
    let gaps: Vec<_> = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
    assert!(gaps.len() <= 1 && numbers.is_sorted(), "{gaps:?}");
    house.proxy.terminate(LIMIT)
}

fn bracketed(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() }
}

#[test]
fn a_flood_of_strangers_ends_in_the_kernel_and_a_camera_that_restarts_is_let_in() -> Result<()> {
    flooded("a_flood_of_strangers_ends_in_the_kernel_and_a_camera_that_restarts_is_let_in", 0)
}

#[test]
fn a_flood_of_strangers_over_ipv6_ends_in_the_kernel_too() -> Result<()> {
    flooded("a_flood_of_strangers_over_ipv6_ends_in_the_kernel_too", 1)
}

/// Who refuses the camera's own address and port, forged among the viewers.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// The program, which looks at what they send because their interface was named.
    Program,
    /// The host's reverse path filter, and no program.
    Host,
}

fn forged(test: &str, family: usize, by: By) -> Result<()> {
    let Some(scene) = Scene::new(test)? else { return Ok(()) };
    let value = i32::from(by == By::Host);
    let filters =
        format!("for filter in /proc/sys/net/ipv4/conf/*/rp_filter; do echo {value} > $filter; done");
    scene.node.output("sh", &["-c", &filters])?;
    let named = [scene.inner.clone(), scene.outer.clone()];
    let flags = ["--interface", &named[0], "--interface", &named[1]];
    let flags: &[&str] = if by == By::Program { &flags } else { &[] };
    let mut house = House::in_scene(scene, family, flags, 1)?;
    house.until_closed(1)?;
    let (viewer, input) = (&house.scene.viewer, house.publisher.input(0));
    let (own, whole) = (CAMERA[family], ["/32", "/128"][family]);
    let through = ["10.7.2.1", "fd07:2::1"][family];
    viewer.ip(&["addr", "add", &format!("{own}{whole}"), "dev", "lo"])?;
    viewer.ip(&["route", "add", &format!("{}{whole}", input.ip()), "via", through, "src", own])?;
    let source = (own.parse::<IpAddr>()?, house.publisher.port(0)?);
    let forger = viewer.inside(|| UdpSocket::bind(source))??;
    let (strange, seen) = (house.strange()?, datagrams(&house.scene.node)?);
    let mut sent = 0;
    for _ in 0..300 {
        house.burst(1)?;
        for ahead in 0..5 {
            // It would continue the run.
            forger.send_to(&packet(house.number + ahead), input)?;
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
        house.player.receive();
    }
    house.is_whole()?;
    let up = datagrams(&house.scene.node)? - seen;
    assert!(up < 100, "{up} of {sent} datagrams went up to a socket");
    let counted = if by == By::Program { sent } else { 0 };
    assert_eq!(house.strange()? - strange, counted, "the program counts each that it meets");
    let said = house.status()?;
    assert!(said.contains("dropped (unknown_source)") == (by == By::Program), "{said}");
    assert!(said.contains(" 1 ports closed"), "{said}");
    house.proxy.terminate(LIMIT)
}

#[test]
fn the_cameras_own_address_and_port_forged_among_viewers_ends_in_the_kernel() -> Result<()> {
    let test = "the_cameras_own_address_and_port_forged_among_viewers_ends_in_the_kernel";
    forged(test, 0, By::Program)
}

#[test]
fn the_same_forged_over_ipv6_ends_in_the_kernel_too() -> Result<()> {
    forged("the_same_forged_over_ipv6_ends_in_the_kernel_too", 1, By::Program)
}

#[test]
fn what_the_reverse_path_filter_refuses_reaches_no_worker() -> Result<()> {
    forged("what_the_reverse_path_filter_refuses_reaches_no_worker", 0, By::Host)
}

/// Two cameras of two addresses share a pair of ports: it is closed while both are in the kernel, and opened before the
/// second one is served.
#[test]
fn a_port_that_serves_two_cameras_is_open_until_both_are_known() -> Result<()> {
    let test = "a_port_that_serves_two_cameras_is_open_until_both_are_known";
    let Some(mut house) = House::new(test, 0, &["--workers", "1"])? else { return Ok(()) };
    house.until_closed(1)?;
    let device = house.scene.inner.replace('a', "b");
    house.scene.camera.ip(&["addr", "add", "10.7.1.100/24", "dev", &device])?;
    let url = house.proxy.url_at(INPUT[0], "other");
    let from: IpAddr = "10.7.1.100".parse()?;
    let record = || Publisher::record_from(&url, VIDEO, Transport::Udp, Some(from));
    let mut other = house.scene.camera.inside(record)??;
    assert_eq!(other.input(0), house.publisher.input(0), "they share it");
    // Its first packets pass, although the port was closed a moment ago.
    for number in 0..50 {
        other.send(0, &packet(number))?;
        house.burst(1)?;
        std::thread::sleep(Duration::from_millis(2));
    }
    house.proxy.wait_for_media("other", 1, LIMIT)?;
    let stream = house.proxy.stream("other").context("the second camera")?;
    assert_eq!(stream["tracks"][0]["packets"], 50, "{stream:#}");
    assert!(house.status()?.contains(" 0 ports closed"), "nobody plays it, so it is not in the kernel");
    drop(other);
    house.is_whole()?;
    house.proxy.terminate(LIMIT)
}
