//! Real viewers: foreign players that play a URL and write a checksum of every frame they decode.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use crate::camera::{Stage, Transport};
use crate::fixture::{FRAME_RATE, Profile, SoundOracle, checksums, read_samples, run_ffmpeg};
use crate::lab::Node;
use crate::process::{Launch, Process, wait_for};

/// A player.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Player {
    /// ffmpeg's command line.
    Ffmpeg,
    /// GStreamer's `rtspsrc`.
    Rtspsrc,
    /// mpv in encoding mode.
    Mpv,
    /// The retina crate; ffmpeg decodes what it depacketised.
    Retina,
}

impl Player {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ffmpeg, Self::Rtspsrc, Self::Mpv, Self::Retina];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ffmpeg => "ffmpeg",
            Self::Rtspsrc => "rtspsrc",
            Self::Mpv => "mpv",
            Self::Retina => "retina",
        }
    }

    /// The program that must be installed.
    pub fn program(self) -> &'static str {
        match self {
            Self::Ffmpeg | Self::Retina => "ffmpeg",
            Self::Rtspsrc => "gst-launch-1.0",
            Self::Mpv => "mpv",
        }
    }
}

/// What to play and how.
#[derive(Debug, Clone)]
pub struct Watch {
    /// Names the files; unique in the scratch folder.
    pub name: String,
    /// The player.
    pub player: Player,
    /// How it asks for media.
    pub transport: Transport,
    /// What it plays.
    pub url: String,
    /// `user:password`.
    pub credentials: Option<String>,
    /// What is played: players need to be told which checksums to write.
    pub profile: Profile,
}

/// A running viewer.
#[derive(Debug)]
pub struct Viewer {
    /// The program.
    pub process: Process,
    watch: Watch,
    folder: PathBuf,
    node: Option<Node>,
    interrupted: bool,
}

/// What retina says when it joins inside a fragmented NAL unit.
const INSIDE_A_FRAGMENT: &str = "no frag in progress";
/// After so long without a frame a gst-launch is taken to have linked its pads wrongly.
const UNLINKED: Duration = Duration::from_secs(8);

/// What a viewer decoded.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// MD5 of every frame.
    pub frames: Vec<String>,
    /// Presentation times of the frames in seconds, where the player writes them.
    pub stamps: Vec<f64>,
    /// Mono samples.
    pub samples: Vec<f32>,
    /// SHA-1 of compressed audio frames, where the profile needs them.
    pub sound_frames: Vec<String>,
}

/// How far a running viewer is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Frames decoded.
    pub frames: usize,
    /// Seconds of sound decoded.
    pub sound_seconds: f32,
}

/// One second of what mpv writes: raw pictures and 32-bit samples.
fn mpv_bytes_per_second(profile: Profile) -> f32 {
    (FRAME_RATE * 320 * 176 * 3 / 2 + profile.sample_rate() * 4) as f32
}

impl Viewer {
    /// Starts the player.
    pub fn start(stage: Stage<'_>, watch: Watch) -> Result<Self> {
        let folder = stage.scratch.to_owned();
        let process = launch(stage, &watch)?.start(&folder)?;
        Ok(Self { process, watch, folder, node: stage.node.cloned(), interrupted: false })
    }

    /// gst-launch links rtspsrc's pads from the threads that add them: when picture and sound begin at the
    /// same moment it may link neither, says nothing and receives for ever. Starting it again is no help to
    /// a proxy that sends nothing: that fails every time.
    ///
    /// Retina gives up when the first packet it gets lies inside a fragmented NAL unit, which is where a live
    /// stream may be joined.
    fn relaunch_unlinked(&mut self) -> Result<()> {
        if !matches!(self.watch.player, Player::Rtspsrc | Player::Retina) {
            return Ok(());
        }
        for _ in 0..2 {
            let begun = wait_for("a first frame", UNLINKED, || {
                (!self.process.is_running() || self.frames() > 0).then_some(())
            });
            let gave_up = self.frames() == 0 && self.process.log().contains(INSIDE_A_FRAGMENT);
            if (begun.is_ok() || self.watch.player == Player::Retina) && !gave_up {
                break;
            }
            self.relaunch()?;
        }
        Ok(())
    }

    /// Starts it again: for a player that ended, or went wrong by itself, as gst-launch does when it links pads.
    pub fn relaunch(&mut self) -> Result<()> {
        eprintln!("{}: started again", self.watch.name);
        self.process.kill();
        // What it wrote must not be taken for what it writes from now on.
        for extension in ["frames", "sums", "nut", "f32le"] {
            std::fs::remove_file(self.file(extension)).ok();
        }
        let stage = Stage { scratch: &self.folder, node: self.node.as_ref() };
        self.process = launch(stage, &self.watch)?.start(&self.folder)?;
        Ok(())
    }

    /// What it was asked to play.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.watch.name))
    }

    fn text(&self, extension: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.file(extension)).unwrap_or_default()).into_owned()
    }

    fn size(&self, extension: &str) -> u64 {
        std::fs::metadata(self.file(extension)).map_or(0, |data| data.len())
    }

    /// Frames decoded so far (retina: depacketised; mpv: roughly, from the size of its output).
    pub fn frames(&self) -> usize {
        match self.watch.player {
            Player::Ffmpeg => checksums(&self.text("frames")).len(),
            Player::Rtspsrc => checksum_lines(&self.text("sums"), 32).count(),
            Player::Mpv => (self.mpv_seconds() * FRAME_RATE as f32) as usize,
            Player::Retina => self.text("sums").lines().filter(|line| *line == "video").count(),
        }
    }

    fn mpv_seconds(&self) -> f32 {
        self.size("nut") as f32 / mpv_bytes_per_second(self.watch.profile)
    }

    /// How far it is; what is not known yet counts as nothing.
    pub fn progress(&self) -> Progress {
        let sound_seconds = match self.watch.player {
            Player::Ffmpeg | Player::Rtspsrc => {
                self.size("f32le") as f32 / 4.0 / self.watch.profile.sample_rate() as f32
            }
            Player::Mpv => self.mpv_seconds(),
            Player::Retina => 0.0,
        };
        Progress { frames: self.frames(), sound_seconds }
    }

    /// Waits until so many frames are decoded. Fails when the player ends before.
    pub fn wait_for_frames(&mut self, frames: usize, limit: Duration) -> Result<()> {
        self.relaunch_unlinked()?;
        let mut ended = false;
        let what = format!("{} to decode {frames} frames", self.watch.name);
        let done = wait_for(&what, limit, || {
            ended = !self.process.is_running();
            (ended || self.frames() >= frames).then_some(())
        });
        done.with_context(|| format!("{} decoded; its log ends:\n{}", self.frames(), self.process.tail()))?;
        if ended && self.frames() < frames {
            bail!("{} ended after {} frames:\n{}", self.watch.name, self.frames(), self.process.tail());
        }
        Ok(())
    }

    /// Asks the player to end; [`Viewer::finish`] waits for it.
    pub fn interrupt(&mut self) {
        self.interrupted = true;
        self.process.signal(Signal::SIGINT);
    }

    /// Ends the player and reads what it decoded.
    pub fn finish(mut self) -> Result<Seen> {
        // Once only: mpv and ffmpeg take a second one as leave to stop at once, without writing the end.
        if !self.interrupted {
            self.interrupt();
        }
        if self.process.wait(Duration::from_secs(4)).is_err() {
            self.process.kill();
        }
        self.read().with_context(|| format!("{}: its log ends:\n{}", self.watch.name, self.process.tail()))
    }

    /// Reads what it decoded so far; complete only after its end.
    pub fn read(&self) -> Result<Seen> {
        match self.watch.player {
            Player::Ffmpeg => {}
            Player::Rtspsrc => {
                let text = self.text("sums");
                return Ok(Seen {
                    frames: checksum_lines(&text, 32).map(|(_, sum)| sum.to_owned()).collect(),
                    stamps: checksum_lines(&text, 32).map(|(stamp, _)| clock_time(stamp)).collect(),
                    samples: read_samples(&std::fs::read(self.file("f32le")).unwrap_or_default()),
                    sound_frames: checksum_lines(&text, 40).map(|(_, sum)| sum.to_owned()).collect(),
                });
            }
            Player::Mpv => self.decode(&[], "nut", &[], "nut")?,
            Player::Retina => {
                let (video, audio) = (self.watch.profile.video(), self.watch.profile.audio());
                let video_format = if video == "h265" { "hevc" } else { video };
                let audio_format: &[&str] = match audio {
                    "aac" => &["-f", "aac"],
                    "pcmu" => &["-f", "mulaw", "-ar", "8000", "-ac", "1"],
                    _ => &["-f", "alaw", "-ar", "8000", "-ac", "1"],
                };
                self.decode(&["-f", video_format], "video", audio_format, "audio")?;
            }
        }
        let frames = self.text("frames");
        Ok(Seen {
            stamps: stamps(&frames),
            frames: checksums(&frames),
            samples: read_samples(&std::fs::read(self.file("f32le")).unwrap_or_default()),
            sound_frames: checksums(&self.text("sounds")),
        })
    }

    /// Turns what a player wrote into checksums and samples.
    fn decode(&self, video_format: &[&str], video: &str, audio_format: &[&str], audio: &str) -> Result<()> {
        let path = |extension| self.file(extension).to_string_lossy().into_owned();
        let (input, output) = (path(video), path("frames"));
        let pictures = ["-i", &input, "-map", "0:v", "-fps_mode", "passthrough", "-f", "framemd5", &output];
        run_ffmpeg(&[video_format, &pictures].concat())?;
        if self.size(audio) > 0 {
            let (input, output) = (path(audio), path("f32le"));
            run_ffmpeg(
                &[audio_format, &["-i", &input, "-map", "0:a", "-ac", "1", "-f", "f32le", &output]].concat(),
            )?;
        }
        if self.watch.player == Player::Mpv && self.watch.profile.sound_oracle() == SoundOracle::Frames {
            let (input, output) = (path("mkv"), path("sounds"));
            let sounds =
                ["-i", &input, "-map", "0:a", "-c", "copy", "-hash", "sha160", "-f", "framehash", &output];
            run_ffmpeg(&sounds)?;
        }
        Ok(())
    }
}

fn launch(stage: Stage<'_>, watch: &Watch) -> Result<Launch> {
    Ok(match watch.player {
        Player::Ffmpeg => ffmpeg(stage, watch),
        Player::Rtspsrc => rtspsrc(stage, watch),
        Player::Mpv => mpv(stage, watch),
        Player::Retina => retina(stage, watch)?,
    })
}

fn with_credentials(watch: &Watch) -> String {
    match &watch.credentials {
        Some(credentials) => watch.url.replacen("rtsp://", &format!("rtsp://{credentials}@"), 1),
        None => watch.url.clone(),
    }
}

fn ffmpeg(stage: Stage<'_>, watch: &Watch) -> Launch {
    let target = |extension| stage.scratch.join(format!("{}.{extension}", watch.name));
    let mut launch = Launch::inside(&watch.name, stage.node, "ffmpeg")
        .args(["-nostdin", "-y", "-v", "warning", "-rtsp_transport", watch.transport.name()])
        .args(["-i", &with_credentials(watch)])
        .args(["-map", "0:v", "-fps_mode", "passthrough", "-enc_time_base", "1:90000", "-flush_packets", "1"])
        .args(["-f", "framemd5"])
        .arg(target("frames"))
        .args(["-map", "0:a", "-ac", "1", "-flush_packets", "1", "-f", "f32le"])
        .arg(target("f32le"));
    if watch.profile.sound_oracle() == SoundOracle::Frames {
        launch = launch
            .args(["-map", "0:a", "-c", "copy", "-flush_packets", "1", "-hash", "sha160", "-f", "framehash"])
            .arg(target("sounds"));
    }
    launch
}

fn rtspsrc(stage: Stage<'_>, watch: &Watch) -> Launch {
    let target = |extension: &str| stage.scratch.join(format!("{}.{extension}", watch.name));
    let samples = target("f32le");
    // libav's decoders on both sides: libjpeg rounds differently.
    let video = match watch.profile.video() {
        "mjpeg" => "rtpjpegdepay ! avdec_mjpeg",
        "h265" => "rtph265depay ! h265parse ! avdec_h265",
        _ => "rtph264depay ! h264parse ! avdec_h264",
    };
    let audio = match watch.profile.audio() {
        "aac" => "rtpmp4gdepay ! aacparse ! avdec_aac",
        "latm" => "rtpmp4adepay ! aacparse ! avdec_aac",
        "opus" => {
            "rtpopusdepay ! tee name=t t. ! queue ! checksumsink hash=sha1 t. ! queue ! opusdec plc=false"
        }
        "pcmu" => "rtppcmudepay ! mulawdec",
        _ => "rtppcmadepay ! alawdec",
    };
    let mut source =
        format!("rtspsrc name=s location={} protocols={} latency=200", watch.url, watch.transport.name());
    if let Some((user, password)) = watch.credentials.as_deref().and_then(|line| line.split_once(':')) {
        write!(source, " user-id={user} user-pw={password}").ok();
    }
    let pipeline = format!(
        "{source} \
         s. ! application/x-rtp,media=video ! queue ! {video} ! checksumsink hash=md5 \
         s. ! application/x-rtp,media=audio ! queue ! {audio} ! audioconvert dithering=none ! audioresample ! \
         audio/x-raw,format=F32LE,channels=1,layout=interleaved ! filesink buffer-mode=unbuffered location={}",
        samples.display(),
    );
    Launch::inside(&watch.name, stage.node, "gst-launch-1.0")
        .arg("-q")
        .args(pipeline.split_whitespace())
        .stdout_to(&target("sums"))
}

fn mpv(stage: Stage<'_>, watch: &Watch) -> Launch {
    let target =
        |extension: &str| stage.scratch.join(format!("{}.{extension}", watch.name)).display().to_string();
    let mut launch = Launch::inside(&watch.name, stage.node, "mpv")
        .args(["--no-config", "--msg-level=all=warn", "--of=nut", "--ovc=rawvideo", "--oac=pcm_f32le"])
        .args([
            format!("--rtsp-transport={}", watch.transport.name()),
            format!("--o={}", target("nut")),
            "--audio-channels=mono".to_owned(),
            with_credentials(watch),
        ]);
    if watch.profile.sound_oracle() == SoundOracle::Frames {
        launch = launch.arg(format!("--stream-record={}", target("mkv")));
    }
    launch
}

fn retina(stage: Stage<'_>, watch: &Watch) -> Result<Launch> {
    let program = built("examples/retina_viewer")?;
    let target = stage.scratch.join(&watch.name);
    Ok(Launch::inside(&watch.name, stage.node, &program.to_string_lossy())
        .args([&watch.url, watch.transport.name()])
        .arg(&target)
        .args(watch.credentials.as_deref())
        .stdout_to(&target.with_extension("sums")))
}

/// A program of this workspace, beside the one that runs now.
pub fn built(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    own.ancestors()
        .skip(1)
        .take(3)
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{name} is not built beside {}", own.display()))
}

/// Lines `0:00:01.234567890 <checksum>` of GStreamer's checksumsink whose checksum has `digits` digits.
fn checksum_lines(text: &str, digits: usize) -> impl Iterator<Item = (&str, &str)> {
    text.lines()
        .filter_map(|line| line.trim().split_once(' '))
        .filter(move |(_, sum)| sum.len() == digits && sum.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn clock_time(text: &str) -> f64 {
    text.split(':').filter_map(|part| part.parse::<f64>().ok()).fold(0.0, |sum, part| sum * 60.0 + part)
}

/// The pts column of framemd5, in seconds.
fn stamps(text: &str) -> Vec<f64> {
    let base = text.lines().find_map(|line| line.strip_prefix("#tb 0: ")).and_then(|tb| {
        let (numerator, denominator) = tb.trim().split_once('/')?;
        Some(numerator.parse::<f64>().ok()? / denominator.parse::<f64>().ok()?)
    });
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(',').nth(2)?.trim().parse::<f64>().ok())
        .map(|pts| pts * base.unwrap_or(1.0))
        .collect()
}
