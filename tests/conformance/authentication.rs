//! Case 13: Digest towards viewers, as players compute it and as odd ones do.

use anyhow::{Context as _, Result, ensure};
use msm_tests::camera::{self, GstCamera, Stage, Transport};
use msm_tests::process::{Launch, Scratch, output};
use msm_tests::proxy::{Options, Proxy};
use msm_tests::rtsp::Answer;
use msm_tests::viewer::{Player, Viewer as RealViewer, Watch};

use crate::fake_camera::FakeCamera;
use crate::peer::{PATIENCE, Peer};
use crate::scene;

const USER: &str = "anna";
const PASSWORD: &str = "kite-4711";

fn guarded(scratch: &Scratch, source: &str) -> Result<Proxy> {
    let file = camera::credentials_file(scratch.path(), "anna", PASSWORD)?;
    let options = Options {
        pulls: vec![("cam".to_owned(), source.to_owned())],
        users: vec![(USER.to_owned(), file)],
        flags: vec!["--log-level".to_owned(), "trace".to_owned()],
        ..Options::default()
    };
    Proxy::start(Stage::here(scratch.path()), "proxy", &options)
}

/// Case 13 (RTSP-36): ffmpeg (with qop, keeps the last challenge) and rtspsrc (without) play with the right
/// password and not with another; SHA-256 stands before MD5, Basic is not offered in clear.
#[test]
fn players_log_in_with_digest_and_are_refused_with_a_wrong_password() -> Result<()> {
    if !scene::programs("players_log_in_with_digest_and_are_refused_with_a_wrong_password") {
        return Ok(());
    }
    let (scratch, film) = (Scratch::new("digest")?, scene::film()?);
    let camera = scene::gst_camera(&scratch, &film, &GstCamera::default())?;
    let proxy = guarded(&scratch, &camera.url)?;
    let offers =
        challenges(&Peer::open(&proxy.url("cam"))?.request("DESCRIBE", &proxy.url("cam"), &[], "")?);
    ensure!(offers.iter().all(|offer| offer.starts_with("Digest ")), "{offers:?}");
    let sha256 = offers.iter().position(|offer| offer.contains("SHA-256"));
    let md5 = offers.iter().position(|offer| !offer.contains("SHA-256"));
    ensure!(md5.is_some() && sha256 < md5, "SHA-256 must stand before MD5: {offers:?}");
    let mut viewers = Vec::new();
    for (number, (player, transport)) in scene::PLAYERS.into_iter().enumerate() {
        let watch = Watch {
            name: format!("player-{number}"),
            player,
            transport,
            url: proxy.url("cam"),
            credentials: Some(format!("{USER}:{PASSWORD}")),
            profile: film.profile,
        };
        viewers.push(RealViewer::start(Stage::here(scratch.path()), watch)?);
    }
    scene::judge_all(&film, viewers)?;
    for player in [Player::Ffmpeg, Player::Rtspsrc] {
        let watch = Watch {
            name: format!("stranger-{}", player.name()),
            player,
            transport: Transport::Tcp,
            url: proxy.url("cam"),
            credentials: Some(format!("{USER}:wrong")),
            profile: film.profile,
        };
        let mut stranger = RealViewer::start(Stage::here(scratch.path()), watch)?;
        stranger.process.wait(PATIENCE * 2).context("a stranger must be refused")?;
        assert_eq!(stranger.frames(), 0, "{}", stranger.process.tail());
    }
    ensure!(!proxy.process.log().contains("kite"), "the password is in the log");
    Ok(())
}

/// Case 13: ffmpeg publishes with the login in its URL by both transports, and not with a wrong one.
#[test]
fn ffmpeg_publishes_with_digest_and_is_refused_with_a_wrong_password() -> Result<()> {
    let test = "ffmpeg_publishes_with_digest_and_is_refused_with_a_wrong_password";
    if !scene::programs(test) {
        return Ok(());
    }
    let (scratch, film, camera) = (Scratch::new("log-in")?, scene::film()?, FakeCamera::start()?);
    let proxy = guarded(&scratch, &camera.url("one"))?;
    let url = |name: &str, password: &str| {
        proxy.url(name).replacen("rtsp://", &format!("rtsp://{USER}:{password}@"), 1)
    };
    for transport in Transport::ALL {
        let name = format!("film-{}", transport.name());
        let stage = Stage::here(scratch.path());
        let publisher = camera::publish_with_ffmpeg(stage, &name, &film, &url(&name, PASSWORD), transport)?;
        proxy.wait_for_media(&name, 2, PATIENCE).with_context(|| publisher.tail())?;
    }
    let stage = Stage::here(scratch.path());
    let mut stranger =
        camera::publish_with_ffmpeg(stage, "stranger", &film, &url("mine", "wrong"), Transport::Tcp)?;
    stranger.wait(PATIENCE * 2).context("a stranger must be refused")?;
    ensure!(proxy.stream("mine").is_none(), "{}", stranger.tail());
    Ok(())
}

/// curl's own Digest needs a 401, and OPTIONS, all that it can send, is answered before authentication
/// (RTSP-9): it must get 200 with and without a login.
#[test]
fn curl_gets_options_before_authentication() -> Result<()> {
    let test = "curl_gets_options_before_authentication";
    if !msm_tests::privilege::granted(test, &[msm_tests::privilege::Need::Program("curl")]) {
        return Ok(());
    }
    let (scratch, camera) = (Scratch::new("curl")?, FakeCamera::start()?);
    let proxy = guarded(&scratch, &camera.url("one"))?;
    for login in ["anna:wrong", "anna:kite-4711"] {
        let mut curl = Launch::new("curl", "curl")
            .args(["-s", "-i", "--max-time", "10", "--digest", "-u", login, &proxy.url("cam")])
            .start(scratch.path())?;
        curl.wait(PATIENCE)?;
        ensure!(curl.log().starts_with("RTSP/1.0 200"), "{}", curl.log());
        ensure!(curl.log().contains("Public:"), "{}", curl.log());
    }
    Ok(())
}

fn challenges(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 401, "{answer:?}");
    let fields = answer.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("WWW-Authenticate"));
    fields.map(|(_, value)| value.clone()).collect()
}

fn parameter(challenge: &str, name: &str) -> Option<String> {
    let start = challenge.find(&format!("{name}=\""))? + name.len() + 2;
    Some(challenge[start..].split('"').next()?.to_owned())
}

/// Digests of coreutils: not ours.
fn digest(program: &str, text: &str) -> Result<String> {
    let script = format!("printf %s \"$0\" | {program}");
    Ok(output("sh", &["-c", &script, text])?.split(' ').next().unwrap_or_default().to_owned())
}

/// An Authorization header for one challenge.
fn authorization(challenge: &str, method: &str, uri: &str, password: &str, qop: bool) -> Result<String> {
    let sha256 = challenge.contains("SHA-256");
    let program = if sha256 { "sha256sum" } else { "md5sum" };
    let value = |name| parameter(challenge, name).with_context(|| format!("no {name} in {challenge}"));
    let (realm, nonce) = (value("realm")?, value("nonce")?);
    let secret = digest(program, &format!("{USER}:{realm}:{password}"))?;
    let request = digest(program, &format!("{method}:{uri}"))?;
    let (text, extra) = if qop {
        (
            format!("{secret}:{nonce}:00000001:0a4f113b:auth:{request}"),
            ", qop=auth, nc=00000001, cnonce=\"0a4f113b\"",
        )
    } else {
        (format!("{secret}:{nonce}:{request}"), "")
    };
    let response = digest(program, &text)?;
    let algorithm = if sha256 { ", algorithm=SHA-256" } else { "" };
    Ok(format!(
        "Digest username=\"{USER}\", realm=\"{realm}\", nonce=\"{nonce}\", uri=\"{uri}\", response=\"{response}\"{algorithm}{extra}"
    ))
}

/// Case 13 (RTSP-36, RTSP-37): with and without qop, MD5 and SHA-256, the full URL, path and query alone
/// (Bosch), and for SETUP the stream's base with or without its slash (VLC 3, HappyTime).
#[test]
fn every_accepted_form_of_digest_logs_in_and_no_other() -> Result<()> {
    let (scratch, camera) = (Scratch::new("forms")?, FakeCamera::start()?);
    let proxy = guarded(&scratch, &camera.url("one"))?;
    let base = proxy.url("cam");
    let with_query = format!("{base}?channel=1");
    let track = format!("{base}/trackID=0");
    let offer = ("Transport", "RTP/AVP/TCP;interleaved=0-1");
    let cases = [
        ("DESCRIBE", base.as_str(), base.clone(), true),
        ("DESCRIBE", &base, "/cam".to_owned(), true),
        ("DESCRIBE", &with_query, "/cam?channel=1".to_owned(), true),
        ("SETUP", &track, track.clone(), true),
        ("SETUP", &track, "/cam/trackID=0".to_owned(), true),
        ("SETUP", &track, base.clone(), true),
        ("SETUP", &track, format!("{base}/"), true),
        ("DESCRIBE", &base, proxy.url("other"), false),
        ("DESCRIBE", &base, "/other".to_owned(), false),
    ];
    for (method, url, uri, granted) in &cases {
        let offers = challenges(&Peer::open(&base)?.request(method, url, &[offer], "")?);
        for number in 0..offers.len() {
            for qop in [true, false] {
                // The nonce belongs to the connection: each form answers a challenge of its own one.
                let mut peer = Peer::open(&base)?;
                let offers = challenges(&peer.request(method, url, &[offer], "")?);
                let header = authorization(&offers[number], method, uri, PASSWORD, qop)?;
                let answer = peer.request(method, url, &[offer, ("Authorization", &header)], "")?;
                let expected = if *granted { 200 } else { 401 };
                assert_eq!(answer.status, expected, "{method} {url} by {header}: {answer:?}");
            }
        }
    }
    // Another connection's nonce is not accepted.
    let offers = challenges(&Peer::open(&base)?.request("DESCRIBE", &base, &[], "")?);
    let header = authorization(&offers[0], "DESCRIBE", &base, PASSWORD, false)?;
    let mut other = Peer::open(&base)?;
    let stale = other.request("DESCRIBE", &base, &[("Authorization", &header)], "")?;
    assert_eq!(stale.status, 401, "{stale:?}");
    Ok(())
}

/// The limits: three failures close the connection (`401` each), and OPTIONS needs no login.
#[test]
fn three_failed_logins_close_the_connection() -> Result<()> {
    let (scratch, camera) = (Scratch::new("failures")?, FakeCamera::start()?);
    let mut proxy = guarded(&scratch, &camera.url("one"))?;
    let url = proxy.url("cam");
    let mut peer = Peer::open(&url)?;
    peer.request("OPTIONS", &url, &[], "")?.ok()?;
    let offers = challenges(&peer.request("DESCRIBE", &url, &[], "")?);
    let header = authorization(&offers[0], "DESCRIBE", &url, "wrong", false)?;
    for _ in 0..3 {
        let answer = peer.request("DESCRIBE", &url, &[("Authorization", &header)], "")?;
        assert_eq!(answer.status, 401);
    }
    peer.wait_for_close(PATIENCE)?;
    scene::assert_alive(&mut proxy)?;
    assert_eq!(camera.count("DESCRIBE"), 0, "a stranger reached the camera");
    Ok(())
}
