//! Replays the committed fuzz corpora through the bodies of the fuzz targets.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]
#![expect(clippy::print_stdout, reason = "the last line before a panic names the input")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Fewer inputs than this mean that the corpus was not found, not that it passed.
const MIN_INPUTS: usize = 5;

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn replay(target: &str, body: impl Fn(&[u8])) {
    let dir = fuzz_dir().join("corpus").join(target);
    let mut inputs: Vec<_> = fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    inputs.sort();
    assert!(inputs.len() >= MIN_INPUTS, "{} holds {} inputs", dir.display(), inputs.len());
    for input in inputs {
        // A failing body panics; the last line printed names the input.
        println!("{}", input.display());
        body(&fs::read(&input).unwrap());
    }
}

#[test]
fn rtsp_corpus_holds() {
    replay("rtsp", msm_rtsp::fuzzing::rtsp);
}

#[test]
fn conn_corpus_holds() {
    let now = Instant::now();
    replay("conn", |data| msm_rtsp::fuzzing::conn(now, data));
}

#[test]
fn fastpath_corpus_holds() {
    replay("fastpath", msm_fastpath::fuzzing::frame);
}

#[test]
fn transport_corpus_holds() {
    replay("transport", msm_rtsp::fuzzing::transport);
}

#[test]
fn sdp_corpus_holds() {
    replay("sdp", msm_rtsp::fuzzing::sdp);
}

#[test]
fn auth_corpus_holds() {
    let now = Instant::now();
    replay("auth", |data| msm_rtsp::fuzzing::auth(now, data));
}

#[test]
fn headers_corpus_holds() {
    replay("headers", msm_rtsp::fuzzing::headers);
}

#[test]
fn url_corpus_holds() {
    replay("url", msm_rtsp::fuzzing::url);
}

#[test]
fn rtp_corpus_holds() {
    replay("rtp", msm_media::rtp::fuzz);
}

#[test]
fn rtcp_corpus_holds() {
    replay("rtcp", msm_media::rtcp::fuzz);
}

#[test]
fn every_target_has_a_corpus_that_is_replayed() {
    let mut targets: Vec<_> = fs::read_dir(fuzz_dir().join("targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    targets.sort();
    let source = include_str!("corpora.rs");
    for target in targets {
        assert!(source.contains(&format!("replay(\"{target}\"")), "{target} is not replayed");
    }
}
