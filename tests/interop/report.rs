//! `docs/interop.md`: what was run, with which versions, with which result.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use msm_tests::camera::Transport;
use msm_tests::matrix::{Cell, Scene, Source};
use msm_tests::process::output;
use msm_tests::viewer::Player;

use crate::Outcome;

/// The whole document.
pub(crate) fn write(outcomes: &BTreeMap<Cell, Outcome>) -> Result<String> {
    let passed = outcomes.values().filter(|outcome| outcome.is_ok()).count();
    let mut text = String::new();
    writeln!(text, "# Interop\n")?;
    writeln!(
        text,
        "Foreign programs on both sides of `rtp-proxy standalone`. A cell is passed when what the viewer decoded is a \
         contiguous run of what the source's own file decodes to: MD5 of every frame, and every sample of sound bit for \
         bit (Opus: SHA-1 of every compressed frame, because an Opus decoder's state depends on where it started, and \
         decoded samples that are not silent). What precedes the first key frame, and a decoder's start-up in sound, \
         may differ; nothing after it. A cell that failed while its player did not read in time on a busy machine (its \
         own socket overflowed, or whole frames were shed for it), or because VLC's reports there name other times than its \
         packets (mpv steps its clock then), is played once more, alone.\n"
    )?;
    writeln!(
        text,
        "Written by `cargo xtask test interop --all` on {}: **{passed} of {} cells passed**.\n",
        output("date", &["-u", "+%Y-%m-%d"])?.trim(),
        outcomes.len()
    )?;
    writeln!(text, "## Versions\n\n{}", versions())?;
    writeln!(text, "## Results\n")?;
    writeln!(
        text,
        "Frames and seconds of the run that was found; `udp` and `tcp` are the viewer's transport.\n"
    )?;
    write!(text, "| source | transport | codecs |")?;
    for player in Player::ALL {
        for transport in Transport::ALL {
            write!(text, " {} {} |", player.name(), transport.name())?;
        }
    }
    writeln!(text, "\n|---|---|---|{}", "---|".repeat(Player::ALL.len() * Transport::ALL.len()))?;
    let mut failures = String::new();
    for source in Source::ALL {
        for transport in Transport::ALL {
            for profile in source.profiles() {
                let scene = Scene { source, transport, profile };
                write!(text, "| {} | {} | {} |", source.name(), transport.name(), profile.name())?;
                row(&mut text, &mut failures, scene, outcomes)?;
            }
        }
    }
    writeln!(text, "\n¹ picture only: retina 0.4 has no depacketiser for Opus and MP4A-LATM.\n")?;
    writeln!(text, "## Cells that cannot exist\n")?;
    for reason in IMPOSSIBLE {
        writeln!(text, "- {reason}")?;
    }
    if !failures.is_empty() {
        writeln!(text, "\n## Failures\n\n{failures}")?;
    }
    Ok(text)
}

fn row(
    text: &mut String,
    failures: &mut String,
    scene: Scene,
    outcomes: &BTreeMap<Cell, Outcome>,
) -> Result<()> {
    for player in Player::ALL {
        for transport in Transport::ALL {
            let cell = Cell { scene, player, transport };
            match outcomes.get(&cell) {
                Some(Ok(_)) if cell.reservation().is_some() => write!(text, " ok ¹ |")?,
                Some(Ok(proof)) => {
                    let figures = proof.replace(" frames, ", " / ").replace(" s of sound", " s");
                    write!(text, " {figures} |")?;
                }
                Some(Err(reason)) => {
                    write!(text, " **failed** |")?;
                    writeln!(failures, "- {cell}: {}", reason.lines().next().unwrap_or_default())?;
                }
                None if scene.impossible().is_some() => write!(text, " - |")?,
                None => write!(text, " not run |")?,
            }
        }
    }
    writeln!(text)?;
    Ok(())
}

const IMPOSSIBLE: [&str; 6] = [
    "VLC 3.0 as a server sends by UDP only and answers 461 to an interleaved SETUP.",
    "VLC as a viewer: Debian's build has no live555, so it is no RTSP client.",
    "VLC as a publisher: it has no ANNOUNCE or RECORD.",
    "ffmpeg as a server: `-rtsp_flags listen` takes a publisher only, nobody can play from it.",
    "retina as a publisher: it is a client that plays. It has no depacketiser for Opus and MP4A-LATM, so those cells prove the picture.",
    "curl with a login: its command line sends nothing but OPTIONS, which is answered before authentication (RTSP-9). Digest as curl computes it is proved by ffmpeg (with qop) and rtspsrc (without).",
];

fn versions() -> String {
    let mut text = String::new();
    let programs: [(&str, &str, &[&str]); 5] = [
        ("ffmpeg", "ffmpeg", &["-version"]),
        ("GStreamer", "gst-launch-1.0", &["--version"]),
        ("mpv", "mpv", &["--version"]),
        ("VLC", "dpkg-query", &["-W", "-f", "vlc ${Version}\n", "vlc-bin"]),
        (
            "gst-rtsp-server",
            "dpkg-query",
            &["-W", "-f", "gst-rtsp-server ${Version}\n", "gir1.2-gst-rtsp-server-1.0"],
        ),
    ];
    for (name, program, arguments) in programs {
        let found = output(program, arguments).unwrap_or_else(|_| "version unknown".to_owned());
        writeln!(
            text,
            "- {name}: {}",
            found.lines().next().unwrap_or_default().split(" Copyright").next().unwrap_or_default()
        )
        .ok();
    }
    writeln!(text, "- retina: crate {}", retina_version()).ok();
    let kernel = output("uname", &["-r"]).unwrap_or_default();
    writeln!(text, "- kernel: {}", kernel.trim()).ok();
    text
}

/// From the lockfile, the only place that knows.
fn retina_version() -> String {
    let lock =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock")).unwrap_or_default();
    lock.split("[[package]]")
        .find(|package| package.contains("name = \"retina\"\n"))
        .and_then(|package| package.lines().find_map(|line| line.strip_prefix("version = ")))
        .unwrap_or("unknown")
        .replace('"', "")
}
