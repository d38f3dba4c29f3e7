//! A camera's own address and port flood the proxy with what is not its stream's.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use msm_tests::camera::Transport;
use msm_tests::ground::Ground;
use msm_tests::probe::wire::Rtp;
use msm_tests::probe::{Cameras, Load, Player, Viewers};
use msm_tests::process::wait_for;
use msm_tests::proxy::{Options, Proxy};
use rtp_proxy::commands;

use crate::feed::{self, Feed};
use crate::healthy::LIMIT;
use crate::hostile_media::bad_media;
use crate::kernel_scene::Bpffs;

/// The stream beside it.
const LOAD: Load = Load { packet_bytes: 600, packets_per_second: 100, burst: 10 };
/// Why something of the flood is not forwarded.
const REASONS: [&str; 4] = ["malformed", "payload_type", "ssrc", "rate_limit"];
/// Packets of an SSRC of its own each, beside one of each kind of malformed ones.
const SSRCS: u32 = 6;

#[derive(Debug, Default)]
struct Flood {
    sent: u64,
    ssrc: u32,
}

impl Flood {
    /// A good packet of each track, and many others from where the first one comes from.
    fn round(&mut self, feed: &mut Feed, viewers: &mut [Player]) -> Result<()> {
        let good = feed.packet(0, feed.number);
        for (packet, _) in bad_media(&good) {
            feed.publisher.send(0, &packet)?;
            self.sent += 1;
        }
        let good = Rtp::parse(&good).context("a packet of the feed")?;
        for _ in 0..SSRCS {
            // Two in a row of one would be a source that was restarted.
            self.ssrc += 1;
            let other = Rtp { ssrc: 0x6000_0000 + self.ssrc, ..good.clone() };
            feed.publisher.send(0, &other.to_bytes())?;
            self.sent += 1;
        }
        feed.next()?;
        std::thread::sleep(Duration::from_millis(3));
        viewers.iter_mut().for_each(Player::receive);
        Ok(())
    }
}

fn dropped(proxy: &Proxy) -> Result<[u64; 4]> {
    let mut counts = [0; 4];
    for (count, reason) in counts.iter_mut().zip(REASONS) {
        *count = proxy.metric("msm_dropped_packets_total", &[&format!("reason=\"{reason}\"")])? as u64;
    }
    Ok(counts)
}

/// What carries the viewers of a stream over UDP.
fn rungs(proxy: &Proxy, stream: &str) -> Vec<String> {
    let stream = proxy.stream(stream).unwrap_or_default();
    let legs = stream["legs"].as_array().into_iter().flatten();
    let udp = legs.filter(|leg| leg["transport"] == "udp");
    udp.map(|leg| leg["rung"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_flood_from_a_cameras_own_port_is_counted_by_its_reasons_and_nobody_misses_a_packet() -> Result<()> {
    let test = "a_flood_from_a_cameras_own_port_is_counted_by_its_reasons_and_nobody_misses_a_packet";
    let Some(ground) = Ground::new(test)? else { return Ok(()) };
    let bpffs = if ground.is_kernel() { Some(Bpffs::mount("flood")?) } else { None };
    let place = bpffs.as_ref().map(Bpffs::path);
    let flags = place.iter().flat_map(|path| ["--bpffs".to_owned(), path.display().to_string()]).collect();
    let mut proxy = ground.proxy("proxy", Options { flags, ..Options::default() })?;
    let beside = ground.publish_url(&proxy, "beside");
    let cameras = ground.among_cameras(|| Cameras::publish(&[beside], Transport::Udp, LOAD, None))?;
    let mut others = Viewers::start()?;
    for transport in Transport::ALL {
        others.play(&proxy.url("beside"), transport, None)?;
    }
    let mut feed = feed::record_on(&ground, &proxy)?;
    let url = proxy.url("cam");
    let mut viewers = vec![feed::play(&mut feed, &url, Transport::Udp)?];
    feed::until_carried(&mut feed, &ground, &proxy, 1)?;
    ground.wait_until_carried(&proxy, "beside", 1, || feed.next())?;
    let before = dropped(&proxy)?;
    let mut flood = Flood::default();
    let mut seen = Vec::new();
    for round in 0..600 {
        if round == 300 {
            // From here on a viewer over TCP needs every packet of the stream.
            let play = || flood.round(&mut feed, &mut viewers);
            let player = Player::play_after(&url, Transport::Tcp, play)?;
            viewers.push(player);
        }
        flood.round(&mut feed, &mut viewers)?;
        if round % 50 == 49 {
            seen.extend(rungs(&proxy, "cam"));
        }
    }
    // The last one of an SSRC of its own is held until the next good packet.
    for _ in 0..10 {
        feed.next()?;
    }
    let last = feed.number - 1;
    for viewer in &mut viewers {
        for track in 0..2 {
            let has = |player: &Player| {
                player.packets(track).last().is_some_and(|packet| feed::number(packet) == last)
            };
            viewer.wait("the last good packet", LIMIT, || Ok(()), has)?;
            let numbers: Vec<u32> =
                feed::comparable(&ground, viewer.packets(track)).iter().map(feed::number).collect();
            ensure!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "track {track}: {numbers:?}");
            ensure!(viewer.packets(track).len() == viewer.media[track].len(), "something else was forwarded");
        }
        ensure!(!viewer.closed && viewer.byes(0).is_empty(), "a viewer was disconnected");
    }
    // All of it is accounted for, by its reasons.
    let mut now = [0; 4];
    let counted = wait_for("all of the flood to be counted", LIMIT, || {
        now = dropped(&proxy).ok()?;
        let grown: u64 = now.iter().zip(before).map(|(now, before)| now - before).sum();
        (grown == flood.sent).then_some(())
    });
    let grown: Vec<_> =
        REASONS.iter().zip(now.iter().zip(before).map(|(now, before)| now - before)).collect();
    counted.with_context(|| format!("{grown:?} of {}", flood.sent))?;
    eprintln!("{grown:?} of {}; rungs {seen:?}", flood.sent);
    let limited = now[3] - before[3];
    ensure!(now.iter().zip(before).take(3).all(|(now, before)| now - before > 256), "{grown:?}");
    ensure!((limited > 256) == ground.is_kernel(), "{grown:?}");
    let stream = proxy.stream("cam").context("the stream")?;
    for track in 0..2 {
        ensure!(
            stream["tracks"][track]["lost"] == 0,
            "what does not belong to it entered the books: {stream:#}"
        );
    }
    if let Some(rung) = ground.rung() {
        ensure!(seen.iter().all(|on| on == rung.name()), "legs left {}: {seen:?}", rung.name());
        ground.wait_until_carried(&proxy, "cam", 1, || feed.next())?;
        ground.wait_until_carried(&proxy, "beside", 1, || feed.next())?;
    }
    if let Some(place) = place {
        let status = ground.at_the_proxy(|| commands::status::run(proxy.admin(), &place));
        for reason in REASONS {
            ensure!(status.text.contains(&format!("dropped ({reason})")), "{reason}: {}", status.text);
        }
        let is_told = |line: &str| line.contains("kernel.rate_limited") && line.contains("name=\"cam\"");
        ensure!(proxy.process.log().lines().any(is_told), "{}", proxy.process.tail());
    }
    ensure!(cameras.unsent() == 0, "this machine did not send everything");
    cameras.stop();
    std::thread::sleep(Duration::from_millis(300));
    ensure!(others.overflows(None)? == 0, "this machine dropped packets itself");
    for viewer in 0..2 {
        let account = others.account(viewer);
        let found = (account.lost(), account.doubled, account.wrong, account.ssrc_changes);
        ensure!(
            account.packets > 0 && found == (0, 0, 0, 0),
            "a viewer of the stream beside it: {account:?}"
        );
    }
    ground.judge()?;
    proxy.terminate(LIMIT)
}
