//! Media for the tests: encoded at run time by lavfi sources, with what it decodes to.
//!
//! Every frame and every stretch of sound differs from all others, so that a run of checksums names
//! exactly one place of the source. The encoders' settings keep decoding a pure function of the access
//! unit and its references: no slices (a payloader may cut between them), no noise substitution; key frames
//! are IDR pictures, before which payloaders and depacketisers repeat the parameter sets.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context as _, Result, bail, ensure};

use crate::process::output;

/// Seconds of every fixture; sources loop it.
pub const LENGTH: u32 = 30;
/// Frames from one key frame to the next: 0.4 s.
pub const GROUP: u32 = 10;
/// Frames per second of the video.
pub const FRAME_RATE: u32 = 25;

/// Codecs of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Profile {
    /// What most cameras send.
    H264Aac,
    /// HEVC with the codec of the web.
    H265Opus,
    /// Older audio, µ-law, static payload type 0.
    H264Pcmu,
    /// H.264 with AAC as MP4A-LATM (RFC 6416), which `rtspclientsink` chooses by itself.
    H264Latm,
    /// RFC 2435 pictures, payload type 26, with A-law, payload type 8.
    MjpegPcma,
}

/// How a viewer's sound is compared with the source's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SoundOracle {
    /// Decoded samples, bit for bit.
    Samples,
    /// Compressed frames: an Opus decoder's state never becomes identical after a late start, so its
    /// samples cannot be; identical frames decode identically, and the samples must not be silent.
    Frames,
}

/// Encoder options for pictures that RTP can carry, of a quality from 2, the best, to 31.
///
/// RFC 2435 carries no Huffman tables: only the standard ones can be sent.
pub fn mjpeg(quality: &str) -> [&str; 10] {
    [
        "-c:v",
        "mjpeg",
        "-huffman",
        "default",
        "-force_duplicated_matrix",
        "1",
        "-q:v",
        quality,
        "-pix_fmt",
        "yuvj420p",
    ]
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::H264Aac, Self::H265Opus, Self::H264Pcmu, Self::MjpegPcma, Self::H264Latm];

    /// Name in reports and file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::H264Aac => "h264-aac",
            Self::H265Opus => "h265-opus",
            Self::H264Pcmu => "h264-pcmu",
            Self::MjpegPcma => "mjpeg-pcma",
            Self::H264Latm => "h264-latm",
        }
    }

    /// Video codec: h264, h265 or mjpeg.
    pub fn video(self) -> &'static str {
        self.name().split_once('-').map_or("", |(video, _)| video)
    }

    /// Sound as it is sent: aac, latm, opus, pcmu or pcma.
    pub fn audio(self) -> &'static str {
        self.name().split_once('-').map_or("", |(_, audio)| audio)
    }

    /// Codec of the sound: aac, opus, pcmu or pcma.
    pub fn codec_of_sound(self) -> &'static str {
        if self == Self::H264Latm { "aac" } else { self.audio() }
    }

    /// Samples per second and channel.
    pub fn sample_rate(self) -> u32 {
        match self {
            Self::H264Aac | Self::H264Latm | Self::H265Opus => 48_000,
            Self::H264Pcmu | Self::MjpegPcma => 8_000,
        }
    }

    /// How sound is compared.
    pub fn sound_oracle(self) -> SoundOracle {
        if self == Self::H265Opus { SoundOracle::Frames } else { SoundOracle::Samples }
    }

    fn file_name(self) -> String {
        match self {
            // The same film, sent another way.
            Self::H264Aac | Self::H264Latm => "h264-aac.mp4".to_owned(),
            _ => format!("{}.mkv", self.name()),
        }
    }

    fn encoder(self) -> Vec<&'static str> {
        const H264: &str = "sliced-threads=0:bframes=0:keyint=10:scenecut=0";
        const H265: &str = "log-level=error:bframes=0:keyint=10:open-gop=0";
        let video: &[&str] = match self {
            Self::H264Aac | Self::H264Latm | Self::H264Pcmu => &[
                "-c:v",
                "libx264",
                "-preset",
                "veryfast",
                "-x264-params",
                H264,
                "-b:v",
                "500k",
                "-pix_fmt",
                "yuv420p",
            ],
            Self::H265Opus => &[
                "-c:v",
                "libx265",
                "-preset",
                "ultrafast",
                "-x265-params",
                H265,
                "-b:v",
                "400k",
                "-pix_fmt",
                "yuv420p",
            ],
            Self::MjpegPcma => &mjpeg("8"),
        };
        let audio: &[&str] = match self {
            Self::H264Aac | Self::H264Latm => &["-c:a", "aac", "-aac_pns", "0", "-b:a", "64k"],
            Self::H265Opus => &["-c:a", "libopus", "-b:a", "64k"],
            Self::H264Pcmu => &["-c:a", "pcm_mulaw"],
            Self::MjpegPcma => &["-c:a", "pcm_alaw"],
        };
        [video, audio].concat()
    }
}

/// An encoded file and its own decode.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// Its codecs.
    pub profile: Profile,
    /// The encoded file, readable by every user.
    pub file: PathBuf,
    /// MD5 of every decoded frame.
    pub frames: Vec<String>,
    /// Decoded mono samples.
    pub samples: Vec<f32>,
    /// SHA-1 of every compressed audio frame.
    pub sound_frames: Vec<String>,
}

impl Fixture {
    /// Encodes (once per machine and ffmpeg version) and decodes.
    pub fn make(profile: Profile) -> Result<Self> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().map_err(|_| anyhow::anyhow!("an earlier fixture failed"))?;
        let folder = folder()?;
        let file = folder.join(profile.file_name());
        if !file.exists() {
            let part = folder.join(format!("{}-{}", std::process::id(), profile.file_name()));
            encode(profile, &part)?;
            std::fs::rename(&part, &file)?;
        }
        let frames = cached(&file, "frames", |file, target| {
            run_ffmpeg(&["-i", file, "-map", "0:v", "-fps_mode", "passthrough", "-f", "framemd5", target])
        })?;
        let samples = cached(&file, "f32le", |file, target| {
            run_ffmpeg(&["-i", file, "-map", "0:a", "-f", "f32le", target])
        })?;
        let sounds = cached(&file, "sounds", |file, target| {
            run_ffmpeg(&[
                "-i",
                file,
                "-map",
                "0:a",
                "-c",
                "copy",
                "-hash",
                "sha160",
                "-f",
                "framehash",
                target,
            ])
        })?;
        let fixture = Self {
            profile,
            frames: checksums(&String::from_utf8_lossy(&std::fs::read(frames)?)),
            samples: read_samples(&std::fs::read(samples)?),
            sound_frames: checksums(&String::from_utf8_lossy(&std::fs::read(sounds)?)),
            file,
        };
        let mut distinct = fixture.frames.clone();
        distinct.sort_unstable();
        distinct.dedup();
        ensure!(distinct.len() == fixture.frames.len(), "{}: frames repeat", profile.name());
        ensure!(fixture.frames.len() as u32 == LENGTH * FRAME_RATE, "{}: frames missing", profile.name());
        Ok(fixture)
    }
}

fn encode(profile: Profile, target: &Path) -> Result<()> {
    let length = LENGTH.to_string();
    let picture = format!("testsrc2=size=320x176:rate={FRAME_RATE}");
    let tone = format!("aevalsrc=0.4*sin(2*PI*(300*t+20*t*t)):s={}", profile.sample_rate());
    let mut args = vec!["-f", "lavfi", "-i", &picture, "-f", "lavfi", "-i", &tone, "-t", &length];
    args.extend(profile.encoder());
    let target = target.to_string_lossy();
    args.push(&target);
    run_ffmpeg(&args).with_context(|| format!("encoding {}", profile.name()))
}

fn folder() -> Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
    let version = output("ffmpeg", &["-version"])?;
    let version: String = version
        .split_whitespace()
        .nth(2)
        .unwrap_or("unknown")
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || ".-+".contains(*c))
        .collect();
    let user = nix::unistd::geteuid();
    let folder = std::env::temp_dir().join(format!("msm-fixtures-{user}-{version}-4"));
    if !folder.exists() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&folder)?;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755))?;
    }
    if std::fs::metadata(&folder)?.uid() != user.as_raw() {
        bail!("{} belongs to another user", folder.display());
    }
    Ok(folder)
}

fn cached(file: &Path, extension: &str, make: impl FnOnce(&str, &str) -> Result<()>) -> Result<PathBuf> {
    let target = file.with_extension(extension);
    if !target.exists() {
        let part = file.with_extension(format!("{extension}-{}", std::process::id()));
        make(&file.to_string_lossy(), &part.to_string_lossy())?;
        std::fs::rename(&part, &target)?;
    }
    Ok(target)
}

/// Runs ffmpeg quietly to its end.
pub fn run_ffmpeg(args: &[&str]) -> Result<()> {
    output("ffmpeg", &[&["-v", "error", "-nostdin", "-y"], args].concat()).map(drop)
}

/// The checksum column of ffmpeg's framemd5 and framehash formats.
pub fn checksums(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        // stream, dts, pts, duration, size, checksum; side data may follow.
        .filter_map(|line| line.split(',').nth(5))
        .map(|sum| sum.trim().to_owned())
        .filter(|sum| !sum.is_empty())
        .collect()
}

/// Little-endian 32-bit floats.
pub fn read_samples(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
