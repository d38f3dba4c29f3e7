//! Viewers that pause in the middle of a burst, while the kernel carries the media.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use msm_tests::probe::Player;
use msm_tests::probe::wire::Rtp;

use crate::feed;
use crate::kernel_house::{House, THREE};
use crate::kernel_scene::LIMIT;

/// Packets that the camera sends back to back.
const BURST: usize = 24;

impl House {
    /// The viewer asks while the camera sends burst after burst, until the answer is there. Returns the first
    /// number that was sent after it had been read.
    fn ask_in_bursts(&mut self, viewer: usize, method: &str) -> Result<u32> {
        let answers = self.viewers[viewer].answers;
        self.viewers[viewer].ask(method)?;
        loop {
            for _ in 0..BURST {
                self.feed.next()?;
            }
            self.viewers.iter_mut().for_each(Player::receive);
            if self.viewers[viewer].answers > answers {
                let status = self.viewers[viewer].answer.as_ref().map(|answer| answer.status);
                ensure!(status == Some(200), "{method}: {status:?}");
                return Ok(self.feed.number);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What a viewer has of a track.
    fn row(&self, viewer: usize, track: usize) -> Vec<Rtp> {
        self.viewers[viewer].packets(track)
    }
}

/// Sequence numbers of RTP-Info, in the order of the tracks.
fn promised(rtp_info: &str) -> Vec<u16> {
    let field =
        |entry: &str| entry.split(';').find_map(|part| part.trim().strip_prefix("seq=")?.parse().ok());
    rtp_info.split(',').filter_map(field).collect()
}

/// Pauses one viewer of three again and again. With `restarting` the camera is another one after each pause.
fn pauses(test: &str, rounds: usize, restarting: bool) -> Result<()> {
    let Some(mut house) = House::new(test, 0, &[], &THREE)? else { return Ok(()) };
    // Where each interval of the viewer that pauses begins.
    let mut begins: Vec<[usize; 2]> = vec![[0, 0]];
    for round in 0..rounds {
        house.on(3, "tcx")?;
        // Nothing comes up to the worker any more.
        house.run(60)?;
        let silent_from = house.ask_in_bursts(1, "PAUSE")?;
        house.run(30)?;
        if restarting {
            // A new SSRC is admitted once a second.
            house.run(230)?;
            house.feed.restart();
            house.run(60)?;
        }
        house.arrived([0, 2])?;
        house.viewers[1].receive();
        let kept = [0, 1].map(|track| house.row(1, track).len());
        let last = [0, 1].map(|track| house.row(1, track).last().map(|packet| packet.sequence));
        for track in 0..2 {
            let number = feed::number(house.row(1, track).last().context("media")?);
            ensure!(
                number < silent_from,
                "round {round}, track {track}: {number}, silent from {silent_from}"
            );
        }
        house.ask_in_bursts(1, "PLAY")?;
        let answer = house.viewers[1].answer.clone().context("an answer")?;
        let promised = promised(answer.header("RTP-Info").unwrap_or_default());
        ensure!(promised.len() == 2, "{answer:?}");
        house.run(20)?;
        house.arrived(0..3)?;
        for track in 0..2 {
            let first = house.row(1, track).get(kept[track]).context("media after PLAY")?.sequence;
            let got: Vec<u16> =
                house.row(1, track)[kept[track]..].iter().map(|packet| packet.sequence).collect();
            ensure!(
                first == promised[track],
                "round {round}, track {track}: {promised:?} promised, last before {last:?}, got {got:?}"
            );
            if restarting {
                let next = last[track].map(|last| last.wrapping_add(1));
                ensure!(
                    Some(first) == next,
                    "round {round}, track {track}: {first} after {last:?}, a number was skipped"
                );
            }
        }
        begins.push(kept);
    }
    for track in 0..2 {
        let row = house.row(1, track);
        let ends = begins.iter().skip(1).map(|begin| begin[track]).chain([row.len()]);
        for (interval, (begin, end)) in begins.iter().map(|begin| begin[track]).zip(ends).enumerate() {
            let numbers: Vec<u32> = row[begin..end].iter().map(feed::number).collect();
            let sequences: Vec<u16> = row[begin..end].iter().map(|packet| packet.sequence).collect();
            // A leg that moves may get a few packets in another order, and each of them once.
            let mut sorted: Vec<u16> = sequences.iter().map(|seq| seq.wrapping_sub(sequences[0])).collect();
            sorted.sort_unstable();
            ensure!(
                sorted.iter().enumerate().all(|(at, place)| usize::from(*place) == at),
                "interval {interval}, track {track}: {sequences:?}"
            );
            let span = numbers.iter().max().zip(numbers.iter().min()).map_or(0, |(max, min)| max - min + 1);
            ensure!(span as usize == numbers.len(), "interval {interval}, track {track}: {numbers:?}");
        }
    }
    house.proxy.terminate(LIMIT)
}

#[test]
fn pauses_in_the_middle_of_bursts_lose_and_double_nothing_of_an_interval() -> Result<()> {
    pauses("pauses_in_the_middle_of_bursts_lose_and_double_nothing_of_an_interval", 20, false)
}

#[test]
fn a_leg_paused_in_a_burst_goes_on_with_its_next_number_behind_a_restarted_camera() -> Result<()> {
    pauses("a_leg_paused_in_a_burst_goes_on_with_its_next_number_behind_a_restarted_camera", 6, true)
}
