//! What an RTSP connection, and a leg with its session, cost in memory: allocated bytes are counted, with what
//! the system's allocator adds to each block. One viewer watches one track here.
//!
//! `cargo test -p rtp-proxy --test memory -- --ignored --nocapture` prints who holds how much of it.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]
#![expect(clippy::print_stdout, reason = "the table is what the ignored test is for")]

mod heap;
mod scene;

use std::sync::{Mutex, PoisonError};

use heap::Heap;
use scene::{Connection, Scene};

#[global_allocator]
static HEAP: Heap = Heap;

/// One scene at a time: they share the allocator.
static TURN: Mutex<()> = Mutex::new(());

/// Viewers. One more than fills a table of theirs, so that every table is as empty as it gets.
const VIEWERS: usize = 449;
/// Bytes of a connection that has asked for nothing yet.
const CONNECTION: i64 = 6 * 1024;
/// Bytes of a leg with its session, on the user path. The fast path adds what
/// `a_leg_in_the_kernel_adds_little` counts, and both are to stay below 4 KiB.
const LEG_AND_SESSION: i64 = 3 * 1024;

#[test]
fn connection_and_leg_with_its_session_stay_small() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut scene = Scene::start();
    // What the first of them makes for all.
    let mut first = scene.connect(VIEWERS);
    watch(&mut scene, &mut first);

    let mut steps = vec![("nobody", Scene::rest())];
    let mut viewers: Vec<_> = (0..VIEWERS).map(|number| scene.connect(number)).collect();
    steps.push(("connection", Scene::rest()));
    for viewer in &mut viewers {
        scene.describe(viewer);
    }
    steps.push(("after DESCRIBE", Scene::rest()));
    for viewer in &mut viewers {
        scene.set_up(viewer);
    }
    steps.push(("after SETUP", Scene::rest()));
    for viewer in &mut viewers {
        scene.play(viewer);
    }
    steps.push(("after PLAY", Scene::rest()));
    for pair in steps.windows(2) {
        println!("{:>7} bytes per viewer: {}", (pair[1].1 - pair[0].1) / VIEWERS as i64, pair[1].0);
    }
    let each = |from: usize, to: usize| (steps[to].1 - steps[from].1) / VIEWERS as i64;
    assert!(each(0, 1) <= CONNECTION, "{} bytes of a connection", each(0, 1));
    assert!(each(1, 4) <= LEG_AND_SESSION, "{} bytes of a leg with its session", each(1, 4));
    drop(viewers);
    scene.end();
}

#[test]
#[ignore = "prints a table, asserts nothing"]
fn who_holds_the_memory() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    const FEW: usize = 56;
    let mut scene = Scene::start();
    let mut first = scene.connect(FEW);
    watch(&mut scene, &mut first);
    Scene::rest();
    heap::remember();
    let mut viewers: Vec<_> = (0..FEW).map(|number| scene.connect(number)).collect();
    Scene::rest();
    table("an RTSP connection", FEW);
    heap::remember();
    for viewer in &mut viewers {
        watch(&mut scene, viewer);
    }
    Scene::rest();
    table("a leg with its session", FEW);
    scene.end();
}

fn watch(scene: &mut Scene, viewer: &mut Connection) {
    scene.describe(viewer);
    scene.set_up(viewer);
    scene.play(viewer);
}

/// Who holds how much of each of so many things.
fn table(what: &str, many: usize) {
    let mut owners: Vec<_> = heap::owners().into_iter().collect();
    owners.sort_by_key(|(_, (bytes, _))| -bytes);
    let all: i64 = owners.iter().map(|(_, (bytes, _))| bytes).sum();
    println!("\n{what}: {} bytes\n\n| bytes | blocks | asked for by |\n|---|---|---|", all / many as i64);
    for (owner, (bytes, blocks)) in owners.iter().filter(|(_, (bytes, _))| *bytes >= many as i64) {
        println!("| {} | {:.1} | {owner} |", bytes / many as i64, *blocks as f64 / many as f64);
    }
}
