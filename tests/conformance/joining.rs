//! Cases 8 and 9: a viewer starts exactly where RTP-Info says, and a stalled one gets no torn message.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use msm_tests::camera::Transport;
use msm_tests::fixture::{GROUP, checksums, mjpeg, run_ffmpeg};
use msm_tests::ground::Ground;
use msm_tests::lip_sync::TimedViewer;
use msm_tests::packet::Capture;
use msm_tests::privilege::{self, Need};
use msm_tests::process::{Launch, Scratch, output, wait_for};
use nix::sys::signal::Signal;

use crate::peer::{
    Info, PATIENCE, Rtp, Viewer, assert_all_contiguous, assert_complete, assert_contiguous, rtp_info,
};
use crate::relay::{Relay, Rule, Unit};
use crate::scene;

/// Case 8 (RTSP-31): in the middle of a running stream, again and again, by both transports.
#[test]
fn the_first_packet_of_every_join_is_the_one_in_rtp_info() -> Result<()> {
    let Some(ground) = Ground::new("the_first_packet_of_every_join_is_the_one_in_rtp_info")? else {
        return Ok(());
    };
    let camera = scene::fake_camera_on(&ground)?;
    let proxy = scene::pulling_on(&ground, &[("cam", camera.url("one"))], &[])?;
    let (mut first, _) = Viewer::play(&proxy.url("cam"), Transport::Udp)?;
    first.packets(5)?;
    // Whoever joins from now on meets a stream that the kernel carries.
    ground.wait_until_carried(&proxy, "cam", 1, || Ok(()))?;
    for round in 0..10 {
        let transport = Transport::ALL[round % 2];
        let mut viewer = Viewer::set_up(&proxy.url("cam"), transport)?;
        let info = viewer.start()?;
        assert!(viewer.peer.frames.is_empty(), "a frame in front of the PLAY answer (RTSP-44)");
        let packets = viewer.packets(3)?;
        check_start(&viewer, &info, &packets, [90_000, 8_000]).with_context(|| format!("join {round}"))?;
        // PLAY while playing: fresh numbers, no jump (RTSP-26).
        let again = viewer.start()?;
        assert_eq!(again.len(), 2);
        let mut all = viewer.packets(3)?;
        assert_all_contiguous(&all);
        if transport == Transport::Udp && round < 4 && ground.is_kernel() {
            // The way into the kernel loses and doubles nothing, and a PLAY there names a packet that comes.
            ground.wait_until_carried(&proxy, "cam", 2, || Ok(()))?;
            let info = viewer.start()?;
            for (track, more) in viewer.packets(100)?.into_iter().enumerate() {
                let named = info[track].seq.context("no seq")?;
                ensure!(more.iter().any(|packet| packet.seq == named), "{named} never came: {info:?}");
                all[track].extend(more);
                assert_complete(&all[track]);
            }
        }
        viewer.tear_down()?;
    }
    first.packets(200)?.iter().for_each(|packets| assert_complete(packets));
    ground.judge()
}

fn check_start(viewer: &Viewer, info: &[Info], packets: &[Vec<Rtp>], clocks: [u32; 2]) -> Result<()> {
    assert_eq!(info.len(), viewer.tracks.len(), "every track of a running stream is in RTP-Info: {info:?}");
    for (number, packets) in packets.iter().enumerate() {
        let entry = &info[number];
        assert_eq!(entry.url, viewer.tracks[number].url);
        assert_eq!(entry.seq, Some(packets[0].seq), "{info:?}");
        assert_contiguous(packets);
        // The start of the range is now; the first packet is of now, give or take a busy machine.
        let distance = packets[0].timestamp.wrapping_sub(entry.rtptime.context("no rtptime")?) as i32;
        ensure!(distance.unsigned_abs() < 2 * clocks[number], "{distance} ticks from rtptime: {info:?}");
        let transport = &viewer.tracks[number].transport;
        if let Some(named) = transport.split(";ssrc=").nth(1) {
            let named = u32::from_str_radix(named.split(';').next().unwrap_or_default(), 16)?;
            assert_eq!(named, packets[0].ssrc, "the SSRC sent is the one in {transport} (RTSP-18)");
            ensure!(transport.contains(&format!(";ssrc={named:08X}")), "{transport}");
        }
    }
    Ok(())
}

/// What a relay in front of a player noted of one join.
#[derive(Debug, Default)]
struct Join {
    rtp_info: Option<String>,
    client_ports: Vec<u16>,
    channels: Vec<u8>,
    first: HashMap<u8, u16>,
    early: usize,
}

struct Noting(Arc<Mutex<Join>>);

impl Rule for Noting {
    fn down(&mut self, unit: Unit) -> Vec<Unit> {
        let mut join = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &unit {
            Unit::Message(message) => {
                if let Some(info) = message.header("RTP-Info") {
                    join.rtp_info.get_or_insert(info.to_owned());
                }
                let part = |name| {
                    message
                        .header("Transport")?
                        .split(';')
                        .find_map(|part| part.strip_prefix(name))?
                        .split('-')
                        .next()
                };
                join.client_ports.extend(part("client_port=").and_then(|port| port.parse::<u16>().ok()));
                join.channels.extend(part("interleaved=").and_then(|channel| channel.parse::<u8>().ok()));
            }
            Unit::Frame(channel, payload) => {
                if join.rtp_info.is_none() {
                    join.early += 1;
                }
                if let Ok(packet) = Rtp::parse(payload) {
                    join.first.entry(*channel).or_insert(packet.seq);
                }
            }
            Unit::Raw(_) => {}
        }
        drop(join);
        vec![unit]
    }
}

/// Case 8 (RTSP-31) and the order of case 9 with rtspsrc and ffmpeg, tshark as the judge of UDP.
#[test]
fn real_players_get_the_packet_in_rtp_info_first() -> Result<()> {
    let test = "real_players_get_the_packet_in_rtp_info_first";
    let needs = [Need::Program("tshark"), Need::Program("dumpcap"), Need::Namespaces];
    if !privilege::granted(test, &needs) || !scene::programs(test) {
        return Ok(());
    }
    let Some(ground) = Ground::new(test)? else { return Ok(()) };
    let film = scene::film()?;
    let camera = scene::gst_camera_on(&ground, &film)?;
    let proxy = scene::pulling_on(&ground, &[("cam", camera.url.clone())], &[])?;
    let (mut running, _) = Viewer::play(&proxy.url("cam"), Transport::Tcp)?;
    running.packets(3)?;
    let port = output_port(&running)?;
    let filter = format!("udp src port {port}");
    let capture = Capture::start(ground.stage(), "capture", ground.viewers_device(), &filter)?;
    let mut joins = Vec::new();
    for (number, player) in scene::PLAYERS.into_iter().enumerate() {
        let join = Arc::new(Mutex::new(Join::default()));
        let noted = Arc::clone(&join);
        let relay = Relay::start(scene::socket_address(&proxy.url("cam"))?, move || {
            Box::new(Noting(Arc::clone(&noted)))
        })?;
        let url = format!("rtsp://{}/cam", relay.address);
        let mut viewer = scene::watch(ground.scratch(), &format!("player-{number}"), &url, player, &film)?;
        viewer.wait_for_frames(5, PATIENCE * 2)?;
        if player.1 == Transport::Udp {
            ground.wait_until_carried(&proxy, "cam", 1, || Ok(()))?;
        }
        drop((viewer, relay));
        joins.push((player, join));
    }
    let file = capture.finish()?;
    for ((player, transport), join) in joins {
        let join = join.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(join.early, 0, "{player:?}: frames in front of the PLAY answer (RTSP-44)");
        let info = rtp_info(join.rtp_info.as_deref().context("no RTP-Info")?)?;
        assert_eq!(info.len(), 2, "{info:?}");
        for (number, info) in info.iter().enumerate() {
            let first = match transport {
                Transport::Tcp => join.first.get(&join.channels[number]).copied(),
                Transport::Udp => {
                    let port = join.client_ports[number];
                    let (file, filter) = (file.to_string_lossy(), format!("udp.dstport == {port}"));
                    let decode = format!("udp.port=={port},rtp");
                    let args = ["-r", &file, "-d", &decode, "-Y", &filter, "-T", "fields", "-e", "rtp.seq"];
                    let seen = output("tshark", &args)?;
                    seen.lines().find(|line| !line.is_empty()).and_then(|line| line.parse().ok())
                }
            };
            assert_eq!(first, info.seq, "{player:?} {transport:?}, track {number}: {join:?}");
        }
    }
    ground.judge()
}

/// Case 8: the first picture comes with the first key frame behind the join, less than half a second on with
/// groups of 0.4 s. Measured by the player on the clock of the stream, from the first packet it got to the
/// first whole picture it would show: a busy machine makes both late and leaves their distance alone. That the
/// first packet is the one of PLAY is what the other cases here prove.
#[test]
fn a_player_that_joins_shows_its_first_picture_within_half_a_second_of_stream() -> Result<()> {
    let test = "a_player_that_joins_shows_its_first_picture_within_half_a_second_of_stream";
    if !scene::programs(test) {
        return Ok(());
    }
    let Some(ground) = Ground::new(test)? else { return Ok(()) };
    let film = scene::film()?;
    let camera = scene::gst_camera_on(&ground, &film)?;
    let proxy = scene::pulling_on(&ground, &[("cam", camera.url.clone())], &[])?;
    let (mut running, _) = Viewer::play(&proxy.url("cam"), Transport::Tcp)?;
    running.packets(3)?;
    // Players join a stream that the kernel carries.
    let (_steady, _) = Viewer::play(&proxy.url("cam"), Transport::Udp)?;
    ground.wait_until_carried(&proxy, "cam", 1, || Ok(()))?;
    let mut distances = Vec::new();
    for number in 0..6 {
        let transport = Transport::ALL[number % 2];
        let name = format!("joins-{number}");
        let viewer = TimedViewer::start_by_timestamps(ground.stage(), &name, &proxy.url("cam"), transport)?;
        let (distance, place) = wait_for("a whole picture", PATIENCE * 2, || viewer.first_picture(&film))
            .with_context(|| viewer.process.tail())?;
        assert_eq!(place as u32 % GROUP, 0, "frame {place} of the film is no key frame");
        ensure!((0.0..0.5).contains(&distance), "join {number}: {distance} s to the first picture");
        distances.push(distance);
        let udp = 1 + usize::from(transport == Transport::Udp);
        ground.wait_until_carried(&proxy, "cam", udp, || Ok(()))?;
    }
    // Joins fall anywhere into a group: a proxy that starts legs at key frames would prove nothing of it.
    ensure!(distances.iter().any(|distance| *distance > 0.0), "{distances:?}");
    ground.judge()
}

/// The proxy's RTP port towards viewers, as a UDP session would be told.
fn output_port(viewer: &Viewer) -> Result<u16> {
    let probe = Viewer::set_up(&viewer.url, Transport::Udp)?;
    Ok(crate::peer::server_ports(&probe.tracks[0].transport)?.0)
}

/// A second of big pictures, so that seconds of them fill every buffer on the way to a stalled reader.
fn big_film(scratch: &Scratch) -> Result<std::path::PathBuf> {
    let file = scratch.file("big.mkv");
    let picture = "testsrc2=size=1280x720:rate=25:duration=1,noise=alls=60:allf=t";
    let output = file.to_string_lossy();
    run_ffmpeg(&[&["-f", "lavfi", "-i", picture][..], &mjpeg("2"), &[&output]].concat())?;
    Ok(file)
}

/// Packets' checksums that a copying ffmpeg wrote.
fn sums(file: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    // The last line may not be complete yet.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    checksums(whole)
}

/// Drops that `/v1/streams` lists for the legs of a stream.
fn dropped(proxy: &msm_tests::proxy::Proxy, name: &str) -> u64 {
    let Some(stream) = proxy.stream(name) else { return 0 };
    let legs = stream["legs"].as_array().cloned().unwrap_or_default();
    let reasons = legs.iter().filter_map(|leg| leg["dropped"].as_object());
    reasons.flat_map(|reasons| reasons.values()).filter_map(serde_json::Value::as_u64).sum()
}

/// Case 9 (RTSP-44): ffmpeg is stopped until the proxy had to drop whole frames, goes on, and every picture
/// it gets then is one of the source's; another viewer misses nothing meanwhile.
#[test]
fn a_stopped_ffmpeg_goes_on_with_whole_pictures() -> Result<()> {
    if !scene::programs("a_stopped_ffmpeg_goes_on_with_whole_pictures") {
        return Ok(());
    }
    let Some(ground) = Ground::new("a_stopped_ffmpeg_goes_on_with_whole_pictures")? else { return Ok(()) };
    let scratch = ground.scratch();
    let proxy = scene::pulling_on(&ground, &[], &[])?;
    let film = big_film(scratch)?;
    let publisher = Launch::new("publisher", "ffmpeg")
        .args(["-nostdin", "-v", "warning", "-re", "-stream_loop", "-1", "-i"])
        .arg(&film)
        .args(["-c", "copy", "-f", "rtsp", "-rtsp_transport", "tcp", &ground.publish_url(&proxy, "big")]);
    let publisher = ground.among_cameras(|| publisher.start(scratch.path()))?;
    proxy.wait_for_media("big", 1, PATIENCE).with_context(|| publisher.tail())?;
    let watch = |name: &str| {
        Launch::new(name, "ffmpeg")
            .args(["-nostdin", "-v", "warning", "-rtsp_transport", "tcp", "-i", &proxy.url("big")])
            .args(["-c", "copy", "-flush_packets", "1", "-f", "framemd5"])
            .arg(scratch.file(&format!("{name}.sums")))
            .start(scratch.path())
    };
    let (reference, stopped) = (watch("reference")?, watch("stopped")?);
    let (reference_sums, stopped_sums) = (scratch.file("reference.sums"), scratch.file("stopped.sums"));
    wait_for("pictures at both", PATIENCE * 2, || {
        (sums(&stopped_sums).len() > 10 && sums(&reference_sums).len() > 10).then_some(())
    })
    .with_context(|| format!("{}\n{}", reference.tail(), stopped.tail()))?;
    let before = dropped(&proxy, "big");
    // A writer that is stuck for 10 s is closed, so a stop is shorter; a busy machine may need a second one.
    for _ in 0..3 {
        stopped.signal(Signal::SIGSTOP);
        wait_for("drops at the stopped viewer", Duration::from_secs(7), || {
            (dropped(&proxy, "big") > before).then_some(())
        })
        .ok();
        stopped.signal(Signal::SIGCONT);
        if dropped(&proxy, "big") > before {
            break;
        }
    }
    ensure!(dropped(&proxy, "big") > before, "the stop was not noticed: {:?}", proxy.stream("big"));
    let at = sums(&stopped_sums).len();
    wait_for("pictures after the stop", PATIENCE, || (sums(&stopped_sums).len() > at + 60).then_some(()))
        .with_context(|| stopped.tail())?;
    // A busy machine may cost the other one whole pictures too; torn ones would be more than 25.
    let seen = || sums(&reference_sums).into_iter().collect::<HashSet<String>>();
    wait_for("the film at the other", PATIENCE * 2, || (seen().len() >= 25).then_some(()))?;
    let whole = seen();
    assert_eq!(whole.len(), 25, "the other viewer saw pictures that are not whole");
    let broken = sums(&stopped_sums).iter().filter(|sum| !whole.contains(*sum)).count();
    assert_eq!(broken, 0, "pictures that are not the source's");
    ground.judge()
}

/// Case 9 (RTSP-44): a reader that stalls finds only whole frames and its answers when it reads again.
#[test]
fn a_stalled_reader_finds_whole_frames_and_answers() -> Result<()> {
    use msm_tests::probe::{Cameras, Load};
    let Some(ground) = Ground::new("a_stalled_reader_finds_whole_frames_and_answers")? else {
        return Ok(());
    };
    let proxy = scene::pulling_on(&ground, &[], &[])?;
    let load = Load { packet_bytes: 1200, packets_per_second: 4000, burst: 40 };
    let url = ground.publish_url(&proxy, "fast");
    // A kernel rung needs a source over UDP, and a viewer whose copies stay there while the other one stalls.
    let transport = if ground.rung().is_some() { Transport::Udp } else { Transport::Tcp };
    let _cameras = ground.among_cameras(|| Cameras::publish(&[url], transport, load, None))?;
    proxy.wait_for_media("fast", 1, PATIENCE)?;
    let _beside = Viewer::play(&proxy.url("fast"), Transport::Udp)?;
    ground.wait_until_carried(&proxy, "fast", 1, || Ok(()))?;
    let mut viewer = Viewer::set_up(&proxy.url("fast"), Transport::Tcp)?;
    viewer.start()?;
    let before = dropped(&proxy, "fast");
    wait_for("drops at the stalled viewer", Duration::from_secs(9), || {
        (dropped(&proxy, "fast") > before).then_some(())
    })
    .with_context(|| format!("{:?}", proxy.stream("fast")))?;
    // Requests arrive while the queue is full: their answers stand between whole frames.
    for _ in 0..5 {
        viewer.request("GET_PARAMETER")?.ok()?;
    }
    let frames = std::mem::take(&mut viewer.peer.frames);
    ensure!(frames.len() > 100, "{} frames", frames.len());
    for (channel, payload) in frames {
        ensure!(channel < 2, "channel {channel}");
        if channel == 0 {
            Rtp::parse(&payload)?;
            assert_eq!(payload.len(), 1200, "a frame that is not whole");
        }
    }
    viewer.packets(50)?;
    ground.wait_until_carried(&proxy, "fast", 1, || Ok(()))?;
    ground.judge()
}
