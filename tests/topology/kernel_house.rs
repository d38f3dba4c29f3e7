//! A proxy between a camera that a test drives packet by packet and some viewers, while the kernel carries the
//! media.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use msm_fastpath::{FlowEntry, FlowKey};
use msm_tests::camera::{Stage, Transport};
use msm_tests::probe::{Cameras, Load, Player, Viewers};
use msm_tests::process::{Scratch, wait_for};
use msm_tests::proxy::{Options, Proxy};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::feed::{self, Feed};
use crate::kernel_scene::{LIMIT, Scene};

/// Where camera and viewers reach the proxy.
pub(crate) const INPUT: [&str; 2] = ["10.7.1.1", "fd07:1::1"];
pub(crate) const OUTPUT: [&str; 2] = ["10.7.2.1", "fd07:2::1"];

/// A proxy in the middle of a scene, one camera that is fed by hand and some viewers.
pub(crate) struct House {
    pub(crate) proxy: Proxy,
    pub(crate) feed: Feed,
    pub(crate) viewers: Vec<Player>,
    /// Address family: 0 is IPv4, 1 is IPv6.
    pub(crate) family: usize,
    pub(crate) scene: Scene,
    pub(crate) scratch: Scratch,
    options: Options,
}

impl House {
    /// Nothing where the test cannot run here. `viewers`: how each of them gets its media.
    pub(crate) fn new(
        test: &str,
        family: usize,
        flags: &[&str],
        viewers: &[Transport],
    ) -> Result<Option<Self>> {
        let Some(scene) = Scene::new(test)? else { return Ok(None) };
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let options = Options { flags, ..Options::default() };
        Self::build(scene, Scratch::new("house")?, family, options, viewers).map(Some)
    }

    /// In a scene that is there.
    pub(crate) fn build(
        scene: Scene,
        scratch: Scratch,
        family: usize,
        mut options: Options,
        viewers: &[Transport],
    ) -> Result<Self> {
        options.flags.extend(["--bpffs".to_owned(), scene.bpffs.path().display().to_string()]);
        let proxy = Proxy::start(Stage::inside(scratch.path(), &scene.node), "proxy", &options)?;
        let url = proxy.url_at(INPUT[family], "cam");
        let feed = scene.camera.inside(|| Feed::record(&url, Transport::Udp))??;
        let mut house = Self { proxy, feed, viewers: Vec::new(), family, scene, scratch, options };
        for transport in viewers {
            house.play(*transport)?;
        }
        Ok(house)
    }

    /// A camera at the door that sends by itself; three viewers over UDP and one over TCP who keep accounts.
    pub(crate) fn watched(&self, load: Load) -> Result<(Cameras, Viewers)> {
        let input = self.proxy.url_at(INPUT[self.family], "door");
        let output = self.proxy.url_at(OUTPUT[self.family], "door");
        let cameras = Cameras::publish(&[input], Transport::Udp, load, Some(&self.scene.camera))?;
        let mut viewers = Viewers::start()?;
        for transport in [Transport::Udp, Transport::Udp, Transport::Udp, Transport::Tcp] {
            viewers.play(&output, transport, Some(&self.scene.viewer))?;
        }
        Ok((cameras, viewers))
    }

    /// Kills the proxy.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.proxy.process.signal(Signal::SIGKILL);
        self.proxy.process.wait(LIMIT)?;
        Ok(())
    }

    /// Starts it again as it was started, after its end.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        let stage = Stage::inside(self.scratch.path(), &self.scene.node);
        self.proxy = Proxy::start(stage, "proxy-again", &self.options)?;
        Ok(())
    }

    /// The same with more flags.
    pub(crate) fn start_again_with(&mut self, flags: &[&str]) -> Result<()> {
        let mut options = self.options.clone();
        options.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let stage = Stage::inside(self.scratch.path(), &self.scene.node);
        self.proxy = Proxy::start(stage, "proxy-with", &options)?;
        Ok(())
    }

    pub(crate) fn play(&mut self, transport: Transport) -> Result<()> {
        let url = self.proxy.url_at(OUTPUT[self.family], "cam");
        let feed = &mut self.feed;
        let player = self.scene.viewer.inside(|| feed::play(feed, &url, transport))??;
        self.viewers.push(player);
        Ok(())
    }

    /// One packet of each track, and time for it to arrive.
    pub(crate) fn tick(&mut self) -> Result<()> {
        self.feed.next()?;
        std::thread::sleep(Duration::from_millis(4));
        for viewer in &mut self.viewers {
            viewer.receive();
        }
        Ok(())
    }

    pub(crate) fn run(&mut self, packets: usize) -> Result<()> {
        (0..packets).try_for_each(|_| self.tick())
    }

    pub(crate) fn stream(&self) -> Result<Value> {
        self.proxy.stream("cam").context("the stream")
    }

    /// Lets the camera send until `done` holds of the stream.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&Value) -> bool) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.run(10)?;
            let stream = self.stream()?;
            if done(&stream) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "waited for {what}: {stream:#}\n{}",
                self.proxy.process.tail()
            );
        }
    }

    /// Lets it send until every leg over UDP is on this rung, with the kernel's counters moving.
    pub(crate) fn on(&mut self, legs: usize, rung: &str) -> Result<()> {
        self.until(&format!("{legs} legs on {rung}"), |stream| {
            let udp =
                || stream["legs"].as_array().into_iter().flatten().filter(|leg| leg["transport"] == "udp");
            udp().count() == legs && udp().all(|leg| leg["rung"] == rung)
        })
    }

    /// Copies that the kernel's program has sent, by its own counters, and the mode of every flow.
    pub(crate) fn in_kernel(&self) -> Result<(u64, Vec<u8>)> {
        let pins = self.scene.pins().context("pinned while it runs")?;
        let map = Map::from_map_data(MapData::from_pin(pins.join("FLOWS"))?)?;
        let flows: HashMap<_, FlowKey, FlowEntry> = map.try_into()?;
        Ok((self.scene.copies()?, flows.iter().filter_map(Result::ok).map(|(_, flow)| flow.mode).collect()))
    }

    /// What each leg has been sent by its counters.
    pub(crate) fn counters(&self) -> Result<Vec<u64>> {
        let stream = self.stream()?;
        let legs = stream["legs"].as_array().context("legs")?;
        Ok(legs.iter().map(|leg| leg["packets"].as_u64().unwrap_or_default()).collect())
    }

    /// Waits until the last packet of every track is with these viewers.
    pub(crate) fn arrived(&mut self, viewers: impl IntoIterator<Item = usize>) -> Result<()> {
        let last = self.feed.number - 1;
        for viewer in viewers {
            for track in 0..2 {
                let has = |player: &Player| {
                    player.packets(track).last().is_some_and(|packet| feed::number(packet) == last)
                };
                self.viewers[viewer].wait("the last packet", LIMIT, || Ok(()), has)?;
            }
        }
        Ok(())
    }

    /// Every viewer's media is one row: one SSRC, no gap in sequence numbers, time that moves on. What was not
    /// forwarded at `splices` is at most `gap` packets each, and nothing is missing elsewhere.
    pub(crate) fn check(&self, viewer: usize, splices: usize, gap: u32) {
        let player = &self.viewers[viewer];
        for track in 0..2 {
            let packets = player.packets(track);
            assert_eq!(packets.len(), player.media[track].len(), "viewer {viewer}: what is no RTP");
            let mut gaps = Vec::new();
            for pair in packets.windows(2) {
                let (a, b) = (&pair[0], &pair[1]);
                let numbers = (feed::number(a), feed::number(b));
                assert_eq!(b.ssrc, a.ssrc, "viewer {viewer}, track {track}: one SSRC at {numbers:?}");
                assert_eq!(
                    b.sequence,
                    a.sequence.wrapping_add(1),
                    "viewer {viewer}, track {track}: one row of numbers at {numbers:?}"
                );
                let step = b.timestamp.wrapping_sub(a.timestamp);
                assert!(numbers.1 > numbers.0, "viewer {viewer}, track {track}: {numbers:?}");
                if numbers.1 - numbers.0 > 1 {
                    gaps.push(numbers);
                } else if splices == 0 {
                    assert_eq!(step, feed::TICKS[track], "viewer {viewer}, track {track}: {numbers:?}");
                }
                assert!(step < 90_000 * 30, "viewer {viewer}, track {track}: {step} at {numbers:?}");
            }
            assert!(
                gaps.len() <= splices && gaps.iter().all(|(a, b)| b - a <= gap + 1),
                "viewer {viewer}, track {track}: {gaps:?}"
            );
            assert!(!player.closed && player.byes(track).is_empty(), "viewer {viewer}: BYE or the end");
        }
    }
}

/// Waits until the legs of [`House::watched`] over UDP are on a rung.
pub(crate) fn three_legs_on(rung: &str, proxy: &Proxy) -> Result<()> {
    wait_for(&format!("three legs on {rung}"), LIMIT, || {
        let legs = proxy.stream("door")?["legs"].as_array()?.clone();
        (legs.iter().filter(|leg| leg["rung"] == rung).count() == 3).then_some(())
    })
    .with_context(|| proxy.process.tail())
}

pub(crate) const THREE: [Transport; 3] = [Transport::Udp; 3];
