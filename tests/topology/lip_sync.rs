//! Case 25 at a real player: picture and sound stay together when a camera restarts.

use anyhow::{Context as _, Result, ensure};
use msm_tests::camera::{GstCamera, Stage, Transport, publish_with_ffmpeg, serve_with_gstreamer};
use msm_tests::fixture::{Fixture, Profile};
use msm_tests::ground::Ground;
use msm_tests::lip_sync::{Played, TimedViewer, lateness_of_sound};
use msm_tests::privilege::{Need, granted};
use msm_tests::process::wait_for;
use msm_tests::proxy::Options;

use crate::healthy::LIMIT;

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

/// Both tracks move on, and they are together since the first restart. That they move on is judged by the RTP
/// timestamps: the player's own clock follows the bursts of a source for moments, the more the busier the machine is,
/// and its times go back by as much when it has caught up. So a tenth of the pictures may be its fault too, while a
/// splice that is wrong stays wrong until the next reports, five seconds later.
fn judge(viewer: &TimedViewer, fixture: &Fixture) -> Result<()> {
    let played = viewer.played(fixture)?;
    let of = |is_picture: bool| played.iter().filter(move |item| item.is_picture == is_picture);
    let back = viewer.steps_back();
    ensure!(back.is_empty(), "time went back: {back:?}");
    ensure!(of(false).next().is_some(), "no sound");
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
    let test = "picture_and_sound_stay_together_when_a_pulled_camera_restarts";
    let Some(ground) = Ground::new(test).unwrap() else { return };
    let stage = ground.stage();
    let fixture = Fixture::make(Profile::H264Aac).unwrap();
    let serve = |name: &str, port: u16| {
        let settings = GstCamera { address: ground.camera_host(), port, ..GstCamera::default() };
        ground.among_cameras(|| serve_with_gstreamer(stage, name, &fixture, &settings)).unwrap()
    };
    let mut camera = serve("camera", 0);
    let port = camera.url.trim_end_matches("/cam").rsplit(':').next().unwrap().parse().unwrap();
    let options = Options { pulls: vec![("cam".to_owned(), camera.url.clone())], ..Options::default() };
    let proxy = ground.proxy("proxy", options).unwrap();
    let viewers = viewers(stage, &proxy.url("cam")).unwrap();
    wait_for_pictures(&viewers, PICTURES).unwrap();
    ground.wait_until_carried(&proxy, "cam", 1, || Ok(())).unwrap();
    for life in 1..=2 {
        camera.process.kill();
        camera = serve(&format!("camera-{life}"), port);
        wait_for_pictures(&viewers, PICTURES).unwrap();
        ground.wait_until_carried(&proxy, "cam", 1, || Ok(())).unwrap();
    }
    for viewer in &viewers {
        judge(viewer, &fixture).unwrap();
    }
    ground.judge().unwrap();
}

#[test]
fn picture_and_sound_stay_together_when_a_publisher_comes_back() {
    if !granted("lip sync of a publisher", &NEEDS) {
        return;
    }
    let test = "picture_and_sound_stay_together_when_a_publisher_comes_back";
    let Some(ground) = Ground::new(test).unwrap() else { return };
    let stage = ground.stage();
    let fixture = Fixture::make(Profile::H264Aac).unwrap();
    let proxy = ground.proxy("proxy", Options::default()).unwrap();
    let (url, target) = (proxy.url("cam"), ground.publish_url(&proxy, "cam"));
    let publish = |name: &str, transport: Transport| {
        ground.among_cameras(|| publish_with_ffmpeg(stage, name, &fixture, &target, transport)).unwrap()
    };
    let mut publisher = publish("life-0", Transport::Udp);
    proxy.wait_for_media("cam", 2, LIMIT).unwrap();
    let viewers = viewers(stage, &url).unwrap();
    wait_for_pictures(&viewers, PICTURES).unwrap();
    ground.wait_until_carried(&proxy, "cam", 1, || Ok(())).unwrap();
    for (life, transport) in [(1, Transport::Udp), (2, Transport::Tcp)] {
        publisher.kill();
        publisher = publish(&format!("life-{life}"), transport);
        wait_for_pictures(&viewers, PICTURES).unwrap();
        if transport == Transport::Udp {
            ground.wait_until_carried(&proxy, "cam", 1, || Ok(())).unwrap();
        }
    }
    for viewer in &viewers {
        judge(viewer, &fixture).unwrap();
    }
    ground.judge().unwrap();
}
