//! Legs in the kernel: a proxy between a camera's namespace and the viewers', with probes that count.
//!
//! The proxy runs inside this process, so that legs can be told where to be; everything else about it is as
//! its users start it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use msm_tests::camera::Transport;
use msm_tests::lab::{Lab, Node};
use msm_tests::privilege::{Need, granted};
use msm_tests::probe::{Account, Cameras, Load, Viewers};
use msm_tests::process::wait_for;
use rtp_proxy::app::{self, Addresses, Stop};
use rtp_proxy::config::{self, Config};
use rtp_proxy::kernel::hop::Rung;
use serde_json::Value;
use tokio::sync::mpsc;

const CAMERA: &str = "10.90.1.2";
pub(crate) const PROXY_AT_CAMERA: &str = "10.90.1.1";
pub(crate) const PROXY_AT_VIEWERS: &str = "10.90.2.1";

/// Camera, proxy and viewers, each in a namespace of its own.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) camera: Node,
    pub(crate) proxy: Node,
    pub(crate) viewers: Node,
    stop: mpsc::Sender<()>,
    rungs: mpsc::Sender<Option<Rung>>,
    admin: SocketAddr,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Scene {
    pub(crate) fn new() -> Result<Self> {
        Self::with(|_| {})
    }

    /// `change`: what of the configuration is not as its users find it.
    pub(crate) fn with(change: impl FnOnce(&mut Config) + Send + 'static) -> Result<Self> {
        let mut lab = Lab::new()?;
        let [camera, proxy, viewers] = [lab.node("camera")?, lab.node("proxy")?, lab.node("viewers")?];
        lab.cable(&camera, &[&format!("{CAMERA}/24")], &proxy, &[&format!("{PROXY_AT_CAMERA}/24")])?;
        lab.cable(&viewers, &["10.90.2.2/24"], &proxy, &[&format!("{PROXY_AT_VIEWERS}/24")])?;
        let (stop, stopped) = mpsc::channel(4);
        let (rungs, asked) = mpsc::channel(4);
        let (ready, started) = std::sync::mpsc::channel();
        let inside = proxy.clone();
        let thread = std::thread::spawn(move || {
            let raw = config::Raw { log_level: Some("warn".to_owned()), ..config::Raw::default() };
            let mut config =
                Config::load(raw, std::collections::BTreeMap::new()).expect("defaults are valid");
            change(&mut config);
            let run =
                || app::run(config, Stop::Driven(stopped, asked), |addresses| ready.send(addresses).unwrap());
            inside.inside(run).expect("the namespace is there").expect("the proxy starts");
        });
        let Addresses { admin, .. } =
            started.recv_timeout(Duration::from_secs(20)).context("the proxy did not start")?;
        Ok(Self { lab, camera, proxy, viewers, stop, rungs, admin, thread: Some(thread) })
    }

    pub(crate) fn publish(&self, name: &str, load: Load) -> Result<Cameras> {
        let url = format!("rtsp://{PROXY_AT_CAMERA}:8554/{name}");
        Cameras::publish(&[url], Transport::Udp, load, Some(&self.camera))
    }

    pub(crate) fn url(name: &str) -> String {
        format!("rtsp://{PROXY_AT_VIEWERS}:8554/{name}")
    }

    /// A page of the admin port.
    pub(crate) fn get(&self, page: &str) -> Result<String> {
        let admin = self.admin;
        let read = || -> Result<String> {
            use std::io::{Read as _, Write as _};
            let mut stream = std::net::TcpStream::connect_timeout(&admin, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET {page} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.split_once("\r\n\r\n").context("no HTTP answer")?.1.to_owned())
        };
        self.proxy.inside(read)?
    }

    pub(crate) fn stream(&self, name: &str) -> Option<Value> {
        let document: Value = serde_json::from_str(&self.get("/v1/streams").ok()?).ok()?;
        document["streams"].as_array()?.iter().find(|stream| stream["name"] == name).cloned()
    }

    fn rungs(&self, name: &str) -> Vec<(String, String)> {
        let Some(stream) = self.stream(name) else { return Vec::new() };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let legs = stream["legs"].as_array().cloned().unwrap_or_default();
        legs.iter().map(|leg| (text(&leg["transport"]), text(&leg["rung"]))).collect()
    }

    /// Waits until every leg over UDP is there.
    pub(crate) fn wait_for_rung(&self, name: &str, legs: usize, rung: &str) -> Result<()> {
        wait_for(&format!("{legs} legs of {name} on {rung}"), Duration::from_secs(10), || {
            let rungs = self.rungs(name);
            let udp: Vec<_> = rungs.iter().filter(|(transport, _)| transport == "udp").collect();
            (udp.len() == legs && udp.iter().all(|(_, now)| now == rung)).then_some(())
        })
        .with_context(|| format!("{:#}", self.stream(name).unwrap_or_default()))
    }

    pub(crate) fn ask(&self, rung: Option<Rung>) {
        self.rungs.blocking_send(rung).expect("the proxy runs");
    }

    pub(crate) fn end(&mut self) -> Result<()> {
        self.stop.blocking_send(()).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow::anyhow!("the proxy panicked; {}", Lab::enter(&self.proxy)))?;
        }
        let _ = &self.lab;
        Ok(())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.end().ok();
    }
}

/// Many packets of the size of audio and video, in bursts.
const BUSY: Load = Load { packet_bytes: 400, packets_per_second: 1_500, burst: 30 };

pub(crate) fn check(account: &Account, rtp_info: &str, what: &str) {
    assert!(account.packets > 0, "{what}: nothing came");
    let found = (account.lost(), account.doubled, account.wrong, account.ssrc_changes);
    assert_eq!(found, (0, 0, 0, 0), "{what}: lost, doubled, wrong, SSRC changes");
    let (first, ..) = account.first.unwrap();
    let promised = rtp_info.split("seq=").nth(1).and_then(|rest| rest.split(';').next());
    assert_eq!(promised, Some(first.to_string().as_str()), "{what}: {rtp_info}");
}

fn counted(stream: &Value, leg: usize) -> u64 {
    stream["legs"][leg]["packets"].as_u64().unwrap_or_default()
}

#[test]
fn legs_reach_the_kernel_and_its_counters_are_the_viewers() {
    if !granted("legs_reach_the_kernel_and_its_counters_are_the_viewers", &[Need::Kernel]) {
        return;
    }
    let mut scene = Scene::new().unwrap();
    let cameras = scene.publish("door", BUSY).unwrap();
    let mut viewers = Viewers::start().unwrap();
    for _ in 0..4 {
        viewers.play(&Scene::url("door"), Transport::Udp, Some(&scene.viewers)).unwrap();
        std::thread::sleep(Duration::from_millis(70));
    }
    scene.wait_for_rung("door", 4, "tcx").unwrap();
    let before = scene.stream("door").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let after = scene.stream("door").unwrap();
    for leg in 0..4 {
        let grown = counted(&after, leg) - counted(&before, leg);
        assert!(grown > 2_000, "leg {leg} got {grown} packets by its counters");
    }
    let sent = cameras.stop();
    std::thread::sleep(Duration::from_millis(800));
    let end = scene.stream("door").unwrap();
    assert_eq!(end["tracks"][0]["packets"], sent[0], "{end:#}");
    assert_eq!(end["tracks"][0]["lost"], 0);
    for leg in 0..4 {
        let account = viewers.account(leg);
        assert_eq!(counted(&end, leg), account.packets, "leg {leg} by its counters and by its viewer");
        check(&account, &viewers.rtp_info(leg), &format!("viewer {leg}"));
    }
    drop(viewers);
    scene.end().unwrap();
}

#[test]
fn a_viewer_on_tcp_beside_kernel_legs_gets_everything_too() {
    if !granted("a_viewer_on_tcp_beside_kernel_legs_gets_everything_too", &[Need::Kernel]) {
        return;
    }
    let scene = Scene::new().unwrap();
    let cameras = scene.publish("door", BUSY).unwrap();
    let mut viewers = Viewers::start().unwrap();
    for transport in [Transport::Udp, Transport::Tcp, Transport::Udp] {
        viewers.play(&Scene::url("door"), transport, Some(&scene.viewers)).unwrap();
    }
    scene.wait_for_rung("door", 2, "tcx").unwrap();
    assert!(scene.rungs("door").contains(&("tcp".to_owned(), "user".to_owned())));
    std::thread::sleep(Duration::from_secs(1));
    viewers.tear_down(1);
    std::thread::sleep(Duration::from_secs(1));
    viewers.play(&Scene::url("door"), Transport::Tcp, Some(&scene.viewers)).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let sent = cameras.stop();
    std::thread::sleep(Duration::from_millis(800));
    for viewer in [0, 1, 2, 3] {
        check(&viewers.account(viewer), &viewers.rtp_info(viewer), &format!("viewer {viewer}"));
    }
    let stream = scene.stream("door").unwrap();
    assert_eq!((&stream["tracks"][0]["packets"], &stream["tracks"][0]["lost"]), (&sent[0].into(), &0.into()));
}

#[test]
fn joins_and_leaves_in_the_middle_of_bursts_disturb_nobody() {
    if !granted("joins_and_leaves_in_the_middle_of_bursts_disturb_nobody", &[Need::Kernel]) {
        return;
    }
    let scene = Scene::new().unwrap();
    let cameras = scene.publish("door", BUSY).unwrap();
    let mut viewers = Viewers::start().unwrap();
    let steady = viewers.play(&Scene::url("door"), Transport::Udp, Some(&scene.viewers)).unwrap();
    scene.wait_for_rung("door", 1, "tcx").unwrap();
    let mut guests = Vec::new();
    for round in 0..30u64 {
        guests.push(viewers.play(&Scene::url("door"), Transport::Udp, Some(&scene.viewers)).unwrap());
        std::thread::sleep(Duration::from_millis(37 + 13 * (round % 7)));
        if round % 3 == 2 {
            viewers.tear_down(guests[round as usize - 1]);
        }
    }
    scene.wait_for_rung("door", 21, "tcx").unwrap();
    cameras.stop();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(viewers.overflows(Some(&scene.viewers)).unwrap(), 0, "this machine dropped packets itself");
    for viewer in std::iter::once(steady).chain(guests) {
        check(&viewers.account(viewer), &viewers.rtp_info(viewer), &format!("viewer {viewer}"));
    }
}
