//! The claim about a viewer: what it decoded is a contiguous run of what the source decodes to.
//!
//! Frame counts and exit codes prove nothing: a viewer that shows a frozen or broken picture has both.

use std::fmt;

use crate::fixture::{Fixture, SoundOracle};
use crate::viewer::Seen;

/// What a viewer must have reached.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// Frames of the run at least.
    pub frames: usize,
    /// Seconds of sound of the run at least.
    pub sound_seconds: f32,
    /// Frames before the run at most: a decoder may show what precedes the first key frame.
    pub start_up_frames: usize,
    /// Places where the run may jump: 0, or what the case causes.
    pub gaps: usize,
}

impl Default for Claim {
    fn default() -> Self {
        Self { frames: 50, sound_seconds: 1.5, start_up_frames: 13, gaps: 0 }
    }
}

/// A run that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Index of the viewer's first item inside the run.
    pub skipped: usize,
    /// Index of that item in the source.
    pub position: usize,
    /// Items of the run, jumps included.
    pub length: usize,
    /// Jumps inside.
    pub gaps: usize,
}

/// What a viewer proved.
#[derive(Debug, Clone, Copy)]
pub struct Proof {
    /// Decoded frames.
    pub video: Run,
    /// Samples or compressed frames, by [`SoundOracle`].
    pub sound: Run,
}

/// Why a viewer's output is not a run of the source's.
#[derive(Debug, Clone, PartialEq)]
pub enum Mismatch {
    /// It decoded nothing.
    Nothing(&'static str),
    /// Nothing, or nothing early enough, equals anything of the source.
    NoStart {
        /// Video or sound.
        media: &'static str,
        /// Items it decoded.
        items: usize,
    },
    /// The run breaks.
    Break {
        /// Video or sound.
        media: &'static str,
        /// Index of the first item that does not follow.
        at: usize,
        /// Items it decoded.
        items: usize,
    },
    /// The run is shorter than claimed.
    Short {
        /// Video or sound.
        media: &'static str,
        /// Length found.
        run: usize,
        /// Length claimed.
        claimed: usize,
    },
    /// The samples are (almost) zero.
    Silent,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing(media) => write!(f, "no {media} was decoded"),
            Self::NoStart { media, items } => {
                write!(
                    f,
                    "none of the first of {items} decoded items of {media} equals anything of the source"
                )
            }
            Self::Break { media, at, items } => {
                write!(f, "{media} leaves the source's order at item {at} of {items}")
            }
            Self::Short { media, run, claimed } => write!(f, "{media}: a run of {run}, {claimed} wanted"),
            Self::Silent => write!(f, "the sound is silence"),
        }
    }
}

impl std::error::Error for Mismatch {}

/// Checks one viewer.
pub fn check(fixture: &Fixture, seen: &Seen, claim: &Claim) -> Result<Proof, Mismatch> {
    let video = video_run(&fixture.frames, &seen.frames, claim)?;
    let rate = fixture.profile.sample_rate() as f32;
    let sound = match fixture.profile.sound_oracle() {
        SoundOracle::Samples => {
            let run = sample_run(&fixture.samples, &seen.samples, rate as usize / 4, claim.gaps)?;
            at_least("sound", run, (claim.sound_seconds * rate) as usize)?
        }
        SoundOracle::Frames => {
            let frames = Claim { start_up_frames: 0, ..*claim };
            let run = cyclic_run("sound", &fixture.sound_frames, &seen.sound_frames, &frames)?;
            at_least("sound", run, (claim.sound_seconds * 50.0) as usize)?
        }
    };
    if !is_audible(&seen.samples) {
        return Err(Mismatch::Silent);
    }
    Ok(Proof { video, sound })
}

/// Checks only the picture.
pub fn video_run(source: &[String], seen: &[String], claim: &Claim) -> Result<Run, Mismatch> {
    at_least("video", cyclic_run("video", source, seen, claim)?, claim.frames)
}

fn at_least(media: &'static str, run: Run, claimed: usize) -> Result<Run, Mismatch> {
    if run.length < claimed { Err(Mismatch::Short { media, run: run.length, claimed }) } else { Ok(run) }
}

/// True when the loudest sample is at least a tenth of full scale.
pub fn is_audible(samples: &[f32]) -> bool {
    samples.iter().any(|sample| sample.abs() >= 0.1)
}

/// Finds `seen` in the endless repetition of `source`.
fn cyclic_run(
    media: &'static str,
    source: &[String],
    seen: &[String],
    claim: &Claim,
) -> Result<Run, Mismatch> {
    if seen.is_empty() {
        return Err(Mismatch::Nothing(media));
    }
    let place = |item: &String| source.iter().position(|other| other == item);
    let first = seen.iter().take(claim.start_up_frames + 1).position(|item| place(item).is_some());
    let Some(skipped) = first else {
        return Err(Mismatch::NoStart { media, items: seen.len() });
    };
    let position = place(&seen[skipped]).unwrap_or_default();
    let (mut expected, mut gaps) = (position, 0);
    for (at, item) in seen.iter().enumerate().skip(skipped) {
        if source[expected] != *item {
            // After a break the decoder may need the next key frame: items of no place belong to the gap.
            match place(item) {
                Some(found) if gaps < claim.gaps => {
                    gaps += 1;
                    expected = found;
                }
                None if gaps < claim.gaps => continue,
                _ => return Err(Mismatch::Break { media, at, items: seen.len() }),
            }
        }
        expected = (expected + 1) % source.len();
    }
    Ok(Run { skipped, position, length: seen.len() - skipped, gaps })
}

/// Finds decoded samples in the endless repetition of the source's, bit for bit.
///
/// A decoder that starts in the middle needs up to `start_up` samples to agree; a player may add silence
/// at the end to fill its last block, and one where a block was cut at the seam of the source's loop.
fn sample_run(source: &[f32], seen: &[f32], start_up: usize, gaps: usize) -> Result<Run, Mismatch> {
    const WINDOW: usize = 512;
    const STEP: usize = 64;
    let end = seen.iter().rposition(|sample| *sample != 0.0).map_or(0, |last| last + 1);
    let seen = &seen[..end];
    if seen.is_empty() {
        return Err(Mismatch::Nothing("sound"));
    }
    let find = |window: &[f32]| (0..source.len()).find(|at| follows(source, *at, window));
    let start = (0..start_up)
        .step_by(STEP)
        .take_while(|from| from + WINDOW <= seen.len())
        .find_map(|from| find(&seen[from..from + WINDOW]).map(|position| (from, position)));
    let Some((skipped, position)) = start else {
        return Err(Mismatch::NoStart { media: "sound", items: seen.len() });
    };
    let (mut at, mut expected, mut found) = (skipped, position, 0);
    while at < seen.len() {
        if source[expected % source.len()].to_bits() == seen[at].to_bits() {
            at += 1;
            expected += 1;
            continue;
        }
        // Where the loop closes, an encoder's priming and padding meet: a start-up like the first.
        let seam = expected % source.len() < start_up || expected % source.len() + start_up > source.len();
        let resumed = (at..at + 2 * start_up)
            .step_by(STEP)
            .take_while(|from| from + WINDOW <= seen.len())
            .find_map(|from| find(&seen[from..from + WINDOW]).map(|position| (from, position)));
        match resumed {
            Some((from, position)) if seam || found < gaps => {
                found += usize::from(!seam);
                (at, expected) = (from, position);
            }
            _ if seam && seen.len() - at < start_up => break,
            _ => return Err(Mismatch::Break { media: "sound", at, items: seen.len() }),
        }
    }
    Ok(Run { skipped, position, length: at - skipped, gaps: found })
}

fn follows(source: &[f32], at: usize, window: &[f32]) -> bool {
    window.iter().enumerate().all(|(i, sample)| source[(at + i) % source.len()].to_bits() == sample.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
        numbers.into_iter().map(|number| format!("frame {number}")).collect()
    }

    fn claim(frames: usize, gaps: usize) -> Claim {
        Claim { frames, gaps, start_up_frames: 3, ..Claim::default() }
    }

    #[test]
    fn a_run_that_wraps_around_the_loop_is_contiguous() {
        let run = video_run(&names(0..10), &names([7, 8, 9, 0, 1]), &claim(5, 0)).unwrap();
        assert_eq!(run, Run { skipped: 0, position: 7, length: 5, gaps: 0 });
    }

    #[test]
    fn a_missing_and_a_doubled_frame_break_the_run() {
        for wrong in [vec![1, 2, 4], vec![1, 2, 2, 3], vec![1, 3, 2]] {
            let found = video_run(&names(0..10), &names(wrong), &claim(3, 0));
            assert!(matches!(found, Err(Mismatch::Break { at: 1 | 2, .. })), "{found:?}");
        }
    }

    #[test]
    fn broken_pictures_are_allowed_before_the_run_only() {
        let mut seen = names([99, 98, 3, 4, 5]);
        assert_eq!(video_run(&names(0..10), &seen, &claim(3, 0)).unwrap().skipped, 2);
        seen.push("frame 77".to_owned());
        assert!(video_run(&names(0..10), &seen, &claim(3, 0)).is_err());
    }

    #[test]
    fn a_gap_is_allowed_where_the_case_causes_one() {
        let seen = names([1, 2, 77, 6, 7]);
        assert!(video_run(&names(0..10), &seen, &claim(4, 0)).is_err());
        assert_eq!(video_run(&names(0..10), &seen, &claim(4, 1)).unwrap().gaps, 1);
    }

    fn chirp(length: usize) -> Vec<f32> {
        (0..length).map(|t| (t as f32 * t as f32 / 9000.0).sin()).collect()
    }

    #[test]
    fn samples_are_found_behind_a_decoders_start_up() {
        let source = chirp(48_000);
        let mut seen = vec![0.5; 640];
        seen.extend_from_slice(&source[20_000..30_000]);
        seen.extend([0.0; 300]);
        let run = sample_run(&source, &seen, 4_000, 0).unwrap();
        assert_eq!((run.skipped, run.position, run.length), (640, 20_000, 10_000));
    }

    #[test]
    fn one_missing_sample_breaks_the_sound() {
        let source = chirp(48_000);
        let mut seen = source[10_000..20_000].to_vec();
        seen.remove(6_000);
        assert!(matches!(sample_run(&source, &seen, 2_000, 0), Err(Mismatch::Break { .. })));
    }
}
