//! Case 25 at a real player: picture and sound stay together when a camera restarts.

use anyhow::{Context as _, Result, ensure};
use msm_tests::camera::{GstCamera, Stage, Transport, publish_with_ffmpeg, serve_with_gstreamer};
use msm_tests::fixture::{Fixture, Profile};
use msm_tests::lip_sync::{Played, TimedViewer, lateness_of_sound};
use msm_tests::privilege::{Need, granted};
use msm_tests::process::{Scratch, wait_for};
use msm_tests::proxy::{Options, Proxy};

use crate::healthy::{LIMIT, proxy};

const NEEDS: [Need; 3] = [Need::Program("ffmpeg"), Need::Program("gst-launch-1.0"), Need::GstRtspServer];
/// What is promised.
const APART: f64 = 0.040;
/// Pictures of every life: longer than the first reports of a source take.
const PICTURES: usize = 150;

fn viewers(stage: Stage<'_>, url: &str) -> Result<Vec<TimedViewer>> {
    let viewer = |transport: Transport| TimedViewer::start(stage, transport.name(), url, transport);
    Transport::ALL.into_iter().map(viewer).collect()
}

/// Waits for so many pictures more at every viewer.
fn wait_for_pictures(viewers: &[TimedViewer], more: usize) -> Result<()> {
    let before: Vec<usize> = viewers.iter().map(TimedViewer::pictures).collect();
    for (viewer, before) in viewers.iter().zip(before) {
        wait_for("pictures", LIMIT, || (viewer.pictures() >= before + more).then_some(()))
            .with_context(|| viewer.process.tail())?;
    }
    Ok(())
}

/// Both tracks move on, and they are together since the first restart. The player's own clock follows the
/// bursts of a source for moments, the more the busier the machine is: a tenth of the pictures may be its
/// fault, while a splice that is wrong stays wrong until the next reports, five seconds later.
fn judge(viewer: &TimedViewer, fixture: &Fixture) -> Result<()> {
    let played = viewer.played(fixture)?;
    let of = |is_picture: bool| played.iter().filter(move |item| item.is_picture == is_picture);
    for is_picture in [true, false] {
        let times: Vec<f64> = of(is_picture).map(|item| item.at).collect();
        ensure!(times.windows(2).all(|pair| pair[1] >= pair[0]), "time went back");
    }
    let pictures: Vec<&Played> = of(true).collect();
    let restart = pictures.windows(2).find(|pair| pair[1].place < pair[0].place);
    let restart = restart.context("the source never began anew")?[1].at;
    let apart = lateness_of_sound(&played)?;
    let since: Vec<f64> = apart.iter().filter(|(at, _)| *at >= restart).map(|(_, late)| late.abs()).collect();
    let wrong = since.iter().filter(|late| **late >= APART).count();
    let worst = since.iter().copied().fold(0.0, f64::max);
    eprintln!("{} pictures since the restart, at most {:.1} ms apart", since.len(), worst * 1e3);
    ensure!(since.len() > PICTURES, "only {} pictures with sound since the restart", since.len());
    ensure!(wrong * 10 < since.len(), "{wrong} of {} are more than 40 ms apart: {apart:?}", since.len());
    Ok(())
}

#[test]
fn picture_and_sound_stay_together_when_a_pulled_camera_restarts() {
    if !granted("lip sync of a pulled camera", &NEEDS) {
        return;
    }
    let scratch = Scratch::new("lip-sync-pulled").unwrap();
    let stage = Stage::here(scratch.path());
    let fixture = Fixture::make(Profile::H264Aac).unwrap();
    let mut camera = serve_with_gstreamer(stage, "camera", &fixture, &GstCamera::default()).unwrap();
    let port = camera.url.trim_end_matches("/cam").rsplit(':').next().unwrap().parse().unwrap();
    let options = Options { pulls: vec![("cam".to_owned(), camera.url.clone())], ..Options::default() };
    let proxy = Proxy::start(stage, "proxy", &options).unwrap();
    let viewers = viewers(stage, &proxy.url("cam")).unwrap();
    wait_for_pictures(&viewers, PICTURES).unwrap();
    for life in 1..=2 {
        camera.process.kill();
        let again = GstCamera { port, ..GstCamera::default() };
        camera = serve_with_gstreamer(stage, &format!("camera-{life}"), &fixture, &again).unwrap();
        wait_for_pictures(&viewers, PICTURES).unwrap();
    }
    for viewer in &viewers {
        judge(viewer, &fixture).unwrap();
    }
}

#[test]
fn picture_and_sound_stay_together_when_a_publisher_comes_back() {
    if !granted("lip sync of a publisher", &NEEDS) {
        return;
    }
    let scratch = Scratch::new("lip-sync-published").unwrap();
    let stage = Stage::here(scratch.path());
    let fixture = Fixture::make(Profile::H264Aac).unwrap();
    let proxy = proxy(scratch.path(), &[]).unwrap();
    let url = proxy.url("cam");
    let mut publisher = publish_with_ffmpeg(stage, "life-0", &fixture, &url, Transport::Udp).unwrap();
    proxy.wait_for_media("cam", 2, LIMIT).unwrap();
    let viewers = viewers(stage, &url).unwrap();
    wait_for_pictures(&viewers, PICTURES).unwrap();
    for (life, transport) in [(1, Transport::Udp), (2, Transport::Tcp)] {
        publisher.kill();
        publisher = publish_with_ffmpeg(stage, &format!("life-{life}"), &fixture, &url, transport).unwrap();
        wait_for_pictures(&viewers, PICTURES).unwrap();
    }
    for viewer in &viewers {
        judge(viewer, &fixture).unwrap();
    }
}
