//! Cameras that restart, viewers that pause, and the end of a proxy, while the kernel carries the media.
//!
//! The proxy is started as its users start it; camera, proxy and viewers have namespaces of their own. The test
//! drives the camera packet by packet, so every packet's place is known.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use msm_fastpath::{FlowEntry, FlowKey, GroupMode};
use msm_tests::camera::{Stage, Transport};
use msm_tests::probe::{Load, Player, Publisher, VIDEO_AUDIO};
use msm_tests::proxy::Proxy;

use crate::feed;
use crate::kernel_house::{House, INPUT, THREE, three_legs_on};
use crate::kernel_scene::{LIMIT, at};

/// RTP-6 behind legs that the kernel carries.
#[test]
fn a_camera_that_restarts_on_the_same_ports_continues_every_kernel_leg() -> Result<()> {
    let test = "a_camera_that_restarts_on_the_same_ports_continues_every_kernel_leg";
    let viewers = [Transport::Udp, Transport::Udp, Transport::Udp, Transport::Tcp];
    let Some(mut house) = House::new(test, 0, &[], &viewers)? else { return Ok(()) };
    house.on(3, "tcx")?;
    let mut legs = 3;
    for round in 0..3 {
        // A new SSRC is admitted once a second: a run is longer than that.
        house.run(300)?;
        let before = house.counters()?;
        let number = house.feed.number;
        house.feed.restart();
        // The worker must have seen the new run before its legs can be said to be back.
        house.until("the new run", |_| true)?;
        house.on(legs, "tcx")?;
        let (former, modes) = house.in_kernel()?;
        house.run(100)?;
        house.arrived(0..=legs)?;
        let copies = house.in_kernel()?.0 - former;
        let due = 100 * 2 * legs as u64;
        assert!(copies >= due * 9 / 10, "round {round}: the kernel sent {copies} of {due}");
        // The first three have the same edit; whoever came later has another one.
        let wanted = if round == 2 { GroupMode::PerLeg } else { GroupMode::Common };
        assert_eq!(modes, [wanted as u8; 2], "round {round}");
        let sent = u64::from(house.feed.number - number);
        for (leg, (before, after)) in before.iter().zip(house.counters()?).enumerate() {
            // Two tracks; each splice may cost the packets that prove the new source.
            let grown = after - before;
            assert!(grown <= 2 * sent + 2 && grown + 8 >= 2 * sent, "leg {leg}: {grown} of {}", 2 * sent);
        }
        if round == 1 {
            house.play(Transport::Udp)?;
            legs += 1;
            house.on(legs, "tcx")?;
            assert_eq!(house.in_kernel()?.1, [GroupMode::PerLeg as u8; 2]);
        }
    }
    for viewer in 0..=legs {
        house.check(viewer, 3, 3);
    }
    house.proxy.terminate(LIMIT)
}

#[test]
fn a_camera_that_comes_back_from_other_ports_continues_every_kernel_leg() -> Result<()> {
    let test = "a_camera_that_comes_back_from_other_ports_continues_every_kernel_leg";
    let Some(mut house) = House::new(test, 0, &[], &THREE)? else { return Ok(()) };
    house.on(3, "tcx")?;
    let url = house.proxy.url_at(INPUT[0], "cam");
    for _ in 0..2 {
        house.run(200)?;
        house.arrived(0..3)?;
        // It lost its power: no TEARDOWN, and its sockets are gone only when the new ones are there.
        let again = house.scene.camera.inside(|| Publisher::record(&url, VIDEO_AUDIO, Transport::Udp))??;
        let former = std::mem::replace(&mut house.feed.publisher, again);
        house.feed.restart();
        house.until("the new run", |_| true)?;
        drop(former);
        house.on(3, "tcx")?;
        house.run(100)?;
        house.arrived(0..3)?;
    }
    for viewer in 0..3 {
        house.check(viewer, 2, 3);
    }
    house.proxy.terminate(LIMIT)
}

/// Clock rates of the two tracks.
const CLOCKS: [u32; 2] = [90_000, 8_000];

/// What an RTP-Info says of each track: sequence number and timestamp.
fn promised(rtp_info: &str) -> Vec<(u16, u32)> {
    let field = |entry: &str, name: &str| {
        entry.split(';').find_map(|part| part.trim().strip_prefix(name)?.parse::<u32>().ok())
    };
    let entries = rtp_info.split(',');
    entries.filter_map(|entry| Some((field(entry, "seq=")? as u16, field(entry, "rtptime=")?))).collect()
}

#[test]
fn a_kernel_leg_is_silent_from_the_answer_of_pause_and_resumes_where_play_says() -> Result<()> {
    let test = "a_kernel_leg_is_silent_from_the_answer_of_pause_and_resumes_where_play_says";
    let Some(mut house) = House::new(test, 0, &[], &THREE)? else { return Ok(()) };
    for round in 0..5 {
        house.on(3, "tcx")?;
        house.run(30 + 7 * round)?;
        let answers = house.viewers[1].answers;
        house.viewers[1].ask("PAUSE")?;
        while house.viewers[1].answers == answers {
            house.tick()?;
        }
        assert_eq!(house.viewers[1].answer.as_ref().map(|answer| answer.status), Some(200));
        // What the camera sends from now on is not this viewer's.
        let silent_from = house.feed.number;
        house.run(120)?;
        house.arrived([0, 2])?;
        house.viewers[1].receive();
        let kept: Vec<usize> = (0..2).map(|track| house.viewers[1].media[track].len()).collect();
        for track in 0..2 {
            let packets = house.viewers[1].packets(track);
            let last = feed::number(packets.last().context("media")?);
            assert!(last < silent_from, "track {track}: {last} came, silent from {silent_from}");
        }
        let legs = house.stream()?["legs"].clone();
        let udp = legs.as_array().context("legs")?.iter().filter(|leg| leg["rung"] == "tcx").count();
        assert_eq!(udp, 2, "the others stay: {legs:#}");
        house.viewers[1].ask("PLAY")?;
        while house.viewers[1].answers == answers + 1 {
            house.tick()?;
        }
        let answer = house.viewers[1].answer.clone().context("an answer")?;
        assert_eq!(answer.status, 200);
        let promised = promised(answer.header("RTP-Info").unwrap_or_default());
        assert_eq!(promised.len(), 2, "{answer:?}");
        house.run(20)?;
        house.arrived(0..3)?;
        for track in 0..2 {
            let packets = house.viewers[1].packets(track);
            let first = packets.get(kept[track]).context("media after PLAY")?;
            let (sequence, time) = promised[track];
            assert_eq!(first.sequence, sequence, "round {round}, track {track}");
            // The time is that of the answer, which lies behind the packet before (RTSP-31).
            let ahead = time.wrapping_sub(first.timestamp.wrapping_sub(feed::TICKS[track]));
            assert!(ahead < CLOCKS[track] / 2, "round {round}, track {track}: {time}, {}", first.timestamp);
            let row: Vec<u32> = packets[kept[track]..].iter().map(feed::number).collect();
            assert!(
                row.windows(2).all(|pair| pair[1] == pair[0] + 1),
                "round {round}, track {track}: {row:?}"
            );
        }
    }
    for viewer in [0, 2] {
        house.check(viewer, 0, 0);
    }
    house.proxy.terminate(LIMIT)
}

#[test]
fn sigterm_says_bye_to_kernel_legs_and_leaves_nothing_in_the_kernel() -> Result<()> {
    let test = "sigterm_says_bye_to_kernel_legs_and_leaves_nothing_in_the_kernel";
    let Some(mut house) = House::new(test, 0, &[], &THREE)? else { return Ok(()) };
    house.on(3, "tcx")?;
    let pins = house.scene.pins().context("pinned while it runs")?;
    let links = std::fs::read_dir(&pins)?
        .filter(|entry| {
            entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("link-"))
        })
        .count();
    assert_eq!(links, 1, "the camera's interface");
    // Held here, so that it can be read when nobody else has it any more.
    let map = Map::from_map_data(MapData::from_pin(pins.join("FLOWS"))?)?;
    let flows: HashMap<_, FlowKey, FlowEntry> = map.try_into()?;
    let keys = || flows.keys().filter_map(Result::ok).collect::<Vec<_>>();
    assert_eq!(keys().len(), 2, "both tracks");
    let inputs = [0, 1].map(|track| house.feed.publisher.input(track));
    let ssrcs = house.viewers.iter().map(|viewer| viewer.packets(0)[0].ssrc).collect::<Vec<_>>();
    house.proxy.terminate(LIMIT)?;
    for (viewer, ssrc) in house.viewers.iter_mut().zip(ssrcs) {
        let gone = |viewer: &Player| viewer.closed && (0..2).all(|track| !viewer.byes(track).is_empty());
        viewer.wait("BYE on both tracks", LIMIT, || Ok(()), gone)?;
        assert_eq!(viewer.byes(0), [ssrc]);
    }
    assert_eq!(keys().len(), 0, "flows that stay");
    assert!(house.scene.pins().is_none(), "pins that stay in {}", pins.display());
    let links = house.scene.node.output("bpftool", &["net", "show"])?;
    assert!(!links.contains(&house.scene.inner), "{links}");
    assert!(!house.scene.filters()?.contains("bpf") && !house.scene.qdiscs()?.contains("clsact"));
    // What comes to the port now is the kernel's own to deliver.
    let kept: usize = house.viewers.iter().map(|viewer| viewer.media[0].len()).sum();
    let socket = house.scene.node.inside(|| UdpSocket::bind(at(INPUT[0], inputs[0].port())))??;
    socket.set_read_timeout(Some(LIMIT))?;
    let packet = house.feed.packet(0, house.feed.number);
    house.feed.publisher.send(0, &packet)?;
    let mut buffer = [0; 2048];
    let (length, _) = socket.recv_from(&mut buffer)?;
    assert_eq!(&buffer[..length], packet);
    for viewer in &mut house.viewers {
        viewer.receive();
    }
    assert_eq!(house.viewers.iter().map(|viewer| viewer.media[0].len()).sum::<usize>(), kept);
    let _ = &house.scratch;
    Ok(())
}

/// Everybody gets everything, by the viewers' own count and by the legs' counters.
fn whole_media(house: &mut House) -> Result<()> {
    house.run(300)?;
    house.arrived(0..3)?;
    let counted = house.counters()?;
    for (viewer, counted) in counted.iter().enumerate() {
        house.check(viewer, 0, 0);
        let got: usize = house.viewers[viewer].media.iter().map(Vec::len).sum();
        assert_eq!(*counted, got as u64, "leg {viewer}: its counter and what its viewer got");
    }
    Ok(())
}

#[test]
fn a_ladder_capped_at_tc_carries_the_same_media_by_a_filter() -> Result<()> {
    let test = "a_ladder_capped_at_tc_carries_the_same_media_by_a_filter";
    let Some(mut house) = House::new(test, 0, &["--max-rung", "tc"], &THREE)? else { return Ok(()) };
    house.on(3, "tc")?;
    assert_eq!(house.scene.filters()?.matches("handle 0x").count(), 1, "{}", house.scene.filters()?);
    whole_media(&mut house)?;
    house.proxy.terminate(LIMIT)?;
    let left = house.scene.filters()? + &house.scene.qdiscs()?;
    assert!(!left.contains("handle 0x") && !left.contains("clsact"), "{left}");
    Ok(())
}

#[test]
fn a_ladder_capped_at_the_workers_carries_the_same_media_and_says_why() -> Result<()> {
    let test = "a_ladder_capped_at_the_workers_carries_the_same_media_and_says_why";
    let Some(mut house) = House::new(test, 0, &["--max-rung", "user"], &THREE)? else { return Ok(()) };
    house.on(3, "user")?;
    whole_media(&mut house)?;
    for leg in house.stream()?["legs"].as_array().context("legs")? {
        assert_eq!((&leg["rung"], &leg["rung_reason"]), (&"user".into(), &"--max-rung user".into()));
    }
    assert!(house.scene.pins().is_none() && !house.scene.qdiscs()?.contains("clsact"));
    house.proxy.terminate(LIMIT)
}

#[test]
fn media_over_ipv6_goes_by_the_kernel_too() -> Result<()> {
    let Some(mut house) = House::new("media_over_ipv6_goes_by_the_kernel_too", 1, &[], &THREE)? else {
        return Ok(());
    };
    house.on(3, "tcx")?;
    whole_media(&mut house)?;
    house.feed.restart();
    house.until("the new run", |_| true)?;
    house.on(3, "tcx")?;
    house.run(50)?;
    house.arrived(0..3)?;
    for viewer in 0..3 {
        assert!(house.viewers[viewer].server(0).is_ipv6());
        house.check(viewer, 1, 3);
    }
    house.proxy.terminate(LIMIT)
}

/// Many packets in bursts.
const LOAD: Load = Load { packet_bytes: 400, packets_per_second: 1_500, burst: 30 };

#[test]
fn a_planned_upgrade_under_kernel_legs_loses_nothing_and_counts_on() -> Result<()> {
    upgraded("a_planned_upgrade_under_kernel_legs_loses_nothing_and_counts_on", "tcx")
}

#[test]
fn a_planned_upgrade_under_legs_of_the_tc_rung_loses_nothing_and_counts_on() -> Result<()> {
    upgraded("a_planned_upgrade_under_legs_of_the_tc_rung_loses_nothing_and_counts_on", "tc")
}

fn upgraded(test: &str, rung: &str) -> Result<()> {
    let Some(mut house) = House::new(test, 0, &["--max-rung", rung], &[])? else { return Ok(()) };
    let (links, filters) = if rung == "tcx" { (1, 0) } else { (0, 1) };
    let (cameras, viewers) = house.watched(LOAD)?;
    let all_there = |proxy: &Proxy| three_legs_on(rung, proxy);
    let counters = |proxy: &Proxy| -> Result<Vec<u64>> {
        let stream = proxy.stream("door").context("the stream")?;
        let legs = stream["legs"].as_array().context("legs")?;
        Ok(legs.iter().map(|leg| leg["packets"].as_u64().unwrap_or_default()).collect())
    };
    for upgrade in 1..=3 {
        all_there(&house.proxy)?;
        std::thread::sleep(Duration::from_millis(700));
        let (before, ids) = (counters(&house.proxy)?, house.scene.ids()?);
        assert!(ids.len() >= 8 + links, "eight maps, on tcx a link: {ids:?}");
        let stage = Stage::inside(house.scratch.path(), &house.scene.node);
        house.proxy.upgrade(stage, &format!("proxy-{upgrade}"))?;
        let after = counters(&house.proxy)?;
        assert_eq!(house.scene.ids()?, ids, "maps and links are the same ones after upgrade {upgrade}");
        assert_eq!(before.len(), after.len());
        assert!(before.iter().zip(&after).all(|(before, after)| before <= after), "{before:?} {after:?}");
        let shown = house.scene.filters()?;
        assert_eq!(shown.matches("handle 0x").count(), filters, "after upgrade {upgrade}: {shown}");
    }
    all_there(&house.proxy)?;
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(cameras.unsent(), 0, "this machine did not send everything");
    let sent = cameras.stop();
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(viewers.overflows(Some(&house.scene.viewer))?, 0, "this machine dropped packets itself");
    let stream = house.proxy.stream("door").context("the stream")?;
    assert_eq!((&stream["tracks"][0]["packets"], &stream["tracks"][0]["lost"]), (&sent[0].into(), &0.into()));
    for (viewer, counted) in counters(&house.proxy)?.into_iter().enumerate() {
        let account = viewers.account(viewer);
        let found = (account.lost(), account.doubled, account.wrong, account.ssrc_changes);
        assert_eq!(found, (0, 0, 0, 0), "viewer {viewer}: lost, doubled, wrong, SSRC changes");
        assert_eq!(account.packets, counted, "viewer {viewer}: by its counter and by itself");
        assert!(!viewers.is_closed(viewer), "viewer {viewer} was disconnected");
    }
    house.proxy.terminate(LIMIT)?;
    let left = house.scene.filters()? + &house.scene.qdiscs()?;
    assert!(!left.contains("handle 0x") && !left.contains("clsact"), "{left}");
    Ok(())
}
