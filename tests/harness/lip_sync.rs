//! How far picture and sound are apart at a real player, by what it plays when.
//!
//! Frames of a [`Fixture`] are told apart by their checksums, so the place of each in the source is known:
//! the distance between that and the time at which the player would show it must be the same for both
//! tracks.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use crate::camera::{Stage, Transport};
use crate::fixture::{FRAME_RATE, Fixture, LENGTH};
use crate::privilege::PYTHON;
use crate::process::{Launch, Process};

/// Samples in a frame of AAC.
const AAC_SAMPLES: f64 = 1024.0;

/// A running player of H.264 and AAC that says when it plays what.
#[derive(Debug)]
pub struct TimedViewer {
    /// The program.
    pub process: Process,
    file: PathBuf,
}

/// Something that the player played.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Played {
    /// Picture, or else sound.
    pub is_picture: bool,
    /// When, in seconds of the player's clock.
    pub at: f64,
    /// Place in the source in seconds, modulo its length.
    pub place: f64,
}

impl TimedViewer {
    /// Starts it as it is.
    pub fn start(stage: Stage<'_>, name: &str, url: &str, transport: Transport) -> Result<Self> {
        Self::start_with(stage, name, url, transport, "auto")
    }

    /// Starts it so that its times are those of the RTP timestamps, whenever packets come.
    pub fn start_by_timestamps(
        stage: Stage<'_>,
        name: &str,
        url: &str,
        transport: Transport,
    ) -> Result<Self> {
        Self::start_with(stage, name, url, transport, "none")
    }

    fn start_with(
        stage: Stage<'_>,
        name: &str,
        url: &str,
        transport: Transport,
        buffer_mode: &str,
    ) -> Result<Self> {
        let script = stage.scratch.join("gst_timed_viewer.py");
        std::fs::write(&script, include_str!("viewer/gst_timed_viewer.py"))?;
        let file = stage.scratch.join(format!("{name}.played"));
        let process = Launch::inside(name, stage.node, PYTHON)
            .arg(&script)
            .args([url, transport.name(), buffer_mode])
            .stdout_to(&file)
            .start(stage.scratch)?;
        Ok(Self { process, file })
    }

    /// Where the RTP timestamps of a track went back, in words. What the player makes of them is another matter: its
    /// clock follows the arrival of packets and the sender reports, forth and back.
    pub fn steps_back(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        text.lines().filter(|line| line.starts_with("back ")).map(str::to_owned).collect()
    }

    /// Pictures that it has shown so far.
    pub fn pictures(&self) -> usize {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        text.lines().filter(|line| line.starts_with("video")).count()
    }

    /// Seconds of the stream between the first packet of the picture that it got and the first whole picture
    /// that it showed, and the place of that in the source; `None` until then. A decoder may show broken
    /// ones before.
    pub fn first_picture(&self, fixture: &Fixture) -> Option<(f64, usize)> {
        let text = std::fs::read_to_string(&self.file).ok()?;
        let whole = text.rsplit_once('\n')?.0;
        let seconds = |line: &str| Some(line.split(' ').nth(1)?.parse::<f64>().ok()? / 1e9);
        let joined = whole.lines().find(|line| line.starts_with("joined")).and_then(seconds)?;
        let place = |line: &str| {
            let sum = line.strip_prefix("video ")?.split(' ').nth(1)?;
            Some((seconds(line)? - joined, fixture.frames.iter().position(|known| known == sum)?))
        };
        whole.lines().find_map(place)
    }

    /// What it has played of the fixture, in the order of its output; what is nothing of the fixture (a
    /// decoder's start-up) is left out.
    pub fn played(&self, fixture: &Fixture) -> Result<Vec<Played>> {
        let text = std::fs::read_to_string(&self.file).with_context(|| format!("{}", self.file.display()))?;
        let place = |all: &[String], sum: &str, rate: f64| {
            all.iter().position(|known| known == sum).map(|index| index as f64 / rate)
        };
        let sound_rate = f64::from(fixture.profile.sample_rate()) / AAC_SAMPLES;
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let line = |line: &str| {
            let mut parts = line.split(' ');
            let is_picture = match parts.next()? {
                "video" => true,
                "audio" => false,
                _ => return None,
            };
            let at = parts.next()?.parse::<f64>().ok()? / 1e9;
            let sum = parts.next()?;
            let place = if is_picture {
                place(&fixture.frames, sum, f64::from(FRAME_RATE))
            } else {
                place(&fixture.sound_frames, sum, sound_rate)
            };
            Some(Played { is_picture, at, place: place? })
        };
        Ok(whole.lines().filter_map(line).collect())
    }
}

/// By how many seconds sound is later than the picture, per picture that has sound beside it: `(time of the
/// player, seconds)`.
pub fn lateness_of_sound(played: &[Played]) -> Result<Vec<(f64, f64)>> {
    let length = f64::from(LENGTH);
    let sounds: Vec<&Played> = played.iter().filter(|item| !item.is_picture).collect();
    let found: Vec<(f64, f64)> = played
        .iter()
        .filter(|item| item.is_picture)
        .filter_map(|picture| {
            // The sound that is played at that moment, give or take a frame of it.
            let near = sounds
                .iter()
                .min_by(|a, b| (a.at - picture.at).abs().total_cmp(&(b.at - picture.at).abs()))?;
            if (near.at - picture.at).abs() > 0.1 {
                return None;
            }
            let apart = (near.at - near.place) - (picture.at - picture.place);
            Some((picture.at, apart - (apart / length).round() * length))
        })
        .collect();
    ensure!(!found.is_empty(), "no picture has sound beside it: {} items", played.len());
    Ok(found)
}
