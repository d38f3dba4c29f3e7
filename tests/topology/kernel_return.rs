//! A proxy that is killed and started again while the kernel forwards: who has not come back yet is served on.

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use msm_fastpath::{FlowEntry, FlowKey, FlowStats};
use msm_tests::camera::Transport;
use msm_tests::probe::VIDEO_AUDIO;
use serde_json::Value;

use crate::feed;
use crate::kernel_house::{House, THREE};
use crate::kernel_scene::LIMIT;

impl House {
    /// Packets that the published flows have counted.
    fn flow_packets(&self) -> Result<u64> {
        let pins = self.scene.pins().context("pinned")?;
        let map =
            |name: &str| -> Result<Map> { Ok(Map::from_map_data(MapData::from_pin(pins.join(name))?)?) };
        let flows: HashMap<_, FlowKey, FlowEntry> = map("FLOWS")?.try_into()?;
        let stats: Array<_, FlowStats> = map("FLOW_STATS")?.try_into()?;
        let mut packets = 0;
        for flow in &flows {
            packets += stats.get(&flow?.1.stats, 0)?.packets;
        }
        Ok(packets)
    }

    /// Packets of each track of a viewer that is served on without a session.
    fn former(&self) -> Result<Vec<u64>> {
        let document: Value = serde_json::from_str(&self.proxy.get("/v1/streams")?)?;
        let viewers = document["kernel"]["former_viewers"].as_array().context("former viewers")?;
        Ok(viewers.iter().filter_map(|viewer| viewer["packets"].as_u64()).collect())
    }

    /// Every number of the camera came once, in order, from the viewer's first to `last`.
    fn whole(&self, viewer: usize, last: u32) -> Result<()> {
        for track in 0..2 {
            let numbers: Vec<u32> = self.viewers[viewer].packets(track).iter().map(feed::number).collect();
            let first = *numbers.first().context("media")?;
            let due: Vec<u32> = (first..=last).collect();
            ensure!(numbers == due, "viewer {viewer}, track {track}: {numbers:?}");
        }
        Ok(())
    }
}

#[test]
fn viewers_of_a_killed_proxy_are_served_until_the_grace_ends_while_others_set_up_again() -> Result<()> {
    let test = "viewers_of_a_killed_proxy_are_served_until_the_grace_ends_while_others_set_up_again";
    let Some(mut house) = House::new(test, 0, &["--adopt-grace", "8s"], &THREE)? else { return Ok(()) };
    house.on(3, "tcx")?;
    house.run(100)?;
    house.kill()?;
    let before = house.flow_packets()?;
    house.run(100)?;
    house.arrived(0..3)?;
    house.start_again()?;
    let feed = &mut house.feed;
    house.scene.camera.inside(|| feed.publisher.record_again(VIDEO_AUDIO))??;
    house.run(50)?;
    house.arrived(0..3)?;
    let former = house.former()?;
    ensure!(
        former.len() == 6 && former.iter().all(|packets| *packets >= 250),
        "who is served on: {former:?}"
    );
    // One more joins, and one of the three sets up again, at its old ports.
    house.play(Transport::Udp)?;
    house.until("the new leg beside those of before", |stream| {
        let legs = stream["legs"].as_array().cloned().unwrap_or_default();
        let why = |leg: &Value| leg["rung_reason"].as_str().unwrap_or_default().to_owned();
        legs.len() == 1 && why(&legs[0]).contains("from before a restart")
    })?;
    let metrics = house.proxy.get("/metrics")?;
    ensure!(metrics.contains("msm_user_legs{reason=\"adopting\"} 1"), "the metric says why: {metrics}");
    let first = &mut house.viewers[0];
    house.scene.viewer.inside(|| first.play_again())??;
    house.run(100)?;
    house.arrived(0..4)?;
    ensure!(house.former()?.len() == 4, "who set up again is no former viewer: {:?}", house.former()?);
    ensure!(house.flow_packets()? >= before + 2 * 250, "the flows' statistics go on");
    let last = house.feed.number - 1;
    for viewer in 0..4 {
        house.whole(viewer, last)?;
    }
    // The grace ends: who came back is the kernel's, who did not gets nothing more.
    house.on(2, "tcx")?;
    ensure!(house.former()?.is_empty(), "{:?}", house.former()?);
    house.run(100)?;
    house.arrived([0, 3])?;
    let last = house.feed.number - 1;
    house.whole(0, last)?;
    house.whole(3, last)?;
    let kept = house.viewers[1].media[0].len();
    house.run(50)?;
    ensure!(house.viewers[1].media[0].len() == kept, "a viewer that went is served for ever");
    house.proxy.terminate(LIMIT)
}
