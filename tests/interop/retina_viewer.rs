//! A viewer on the retina crate: depacketises to files that ffmpeg decodes.
//!
//! `retina_viewer URL udp|tcp TARGET [user:password]` writes TARGET.video and TARGET.audio, and one line
//! `video` or `audio` per frame to standard output, until it is ended.

use std::fs::File;
use std::io::Write as _;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use retina::client::{
    Credentials, PlayOptions, Session, SessionOptions, SetupOptions, TcpTransportOptions, Transport,
    UdpTransportOptions,
};
use retina::codec::{CodecItem, FrameFormat};

fn main() -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(play())
}

#[expect(clippy::print_stdout, reason = "one line per frame is this program's output")]
async fn play() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [url, transport, target, credentials @ ..] = args.as_slice() else {
        bail!("retina_viewer URL udp|tcp TARGET [user:password]");
    };
    let credentials = credentials
        .first()
        .and_then(|line| line.split_once(':'))
        .map(|(user, password)| Credentials { username: user.to_owned(), password: password.to_owned() });
    let mut session =
        Session::describe(url::Url::parse(url)?, SessionOptions::default().creds(credentials)).await?;
    for index in 0..session.streams().len() {
        if session.streams()[index].parameters().is_none()
            && !depacketises(session.streams()[index].encoding_name())
        {
            eprintln!(
                "left out: {} {}",
                session.streams()[index].media(),
                session.streams()[index].encoding_name()
            );
            continue;
        }
        let transport = if transport == "udp" {
            Transport::Udp(UdpTransportOptions::default())
        } else {
            Transport::Tcp(TcpTransportOptions::default())
        };
        let options = SetupOptions::default().transport(transport).frame_format(FrameFormat::SIMPLE);
        session.setup(index, options).await?;
    }
    // Retina repeats H.265 parameter sets that came in the stream, not those of the SDP.
    let sets = parameter_sets(&String::from_utf8_lossy(session.sdp()));
    let mut frames = session.play(PlayOptions::default()).await?.demuxed()?;
    let mut video = File::create(format!("{target}.video"))?;
    video.write_all(&sets)?;
    let mut audio = File::create(format!("{target}.audio"))?;
    while let Some(item) = frames.next().await {
        match item.context("retina")? {
            CodecItem::VideoFrame(frame) => {
                if frame.loss() > 0 {
                    eprintln!("lost {} packets of video", frame.loss());
                }
                video.write_all(frame.data())?;
                println!("video");
            }
            CodecItem::AudioFrame(frame) => {
                audio.write_all(frame.data())?;
                println!("audio");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Retina 0.4 has no depacketiser for Opus.
fn depacketises(encoding: &str) -> bool {
    matches!(encoding, "h264" | "h265" | "jpeg" | "mpeg4-generic" | "pcmu" | "pcma")
}

/// `sprop-vps`, `sprop-sps` and `sprop-pps` (RFC 7798 section 7.1) as Annex B.
fn parameter_sets(sdp: &str) -> Vec<u8> {
    let mut sets = Vec::new();
    for name in ["sprop-vps=", "sprop-sps=", "sprop-pps="] {
        let value = sdp.split([';', ' ', '\r', '\n']).find_map(|part| part.strip_prefix(name));
        if let Some(set) = value.and_then(|value| STANDARD.decode(value).ok()) {
            sets.extend_from_slice(&[0, 0, 0, 1]);
            sets.extend_from_slice(&set);
        }
    }
    sets
}
