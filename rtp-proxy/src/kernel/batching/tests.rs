use super::*;

const IFINDEX: u32 = 7;
/// Bursts per look.
const BURSTS: u32 = 25;

/// Looks once a second at flows that a test moves.
struct Scene {
    batching: Batching,
    start: Instant,
    now: Instant,
    flows: Vec<Flow>,
    received: BTreeMap<u32, u64>,
    lost: u64,
    backlog: u64,
}

impl Scene {
    fn new() -> Self {
        let now = Instant::now();
        let batching = Batching::default();
        let received = BTreeMap::from([(IFINDEX, 0)]);
        Self { batching, start: now, now, flows: Vec::new(), received, lost: 5, backlog: 8_192 }
    }

    fn with_flow(mut self) -> Self {
        self.flow(IFINDEX);
        self
    }

    fn flow(&mut self, ifindex: u32) {
        let port = (self.flows.len() as u16).to_be_bytes();
        self.flows.push(Flow {
            ifindex,
            id: ([1; 16], [2; 16], port, [3; 2], ifindex),
            pace: Pace { packets: 0, bursts: u32::MAX - 5 },
            viewers: 16,
        });
    }

    /// Packets of one flow in bursts, each in a buffer of its own.
    fn send(&mut self, flow: usize, bursts: u32, burst: u64) {
        let Flow { ifindex, pace, .. } = &mut self.flows[flow];
        pace.packets += u64::from(bursts) * burst;
        pace.bursts = pace.bursts.wrapping_add(bursts);
        *self.received.entry(*ifindex).or_default() += u64::from(bursts) * burst;
    }

    fn found(&self) -> Look {
        Look {
            flows: self.flows.clone(),
            received: self.received.clone(),
            lost: BTreeMap::from([(IFINDEX, self.lost)]),
            backlog: self.backlog,
        }
    }

    /// A second passes.
    fn look(&mut self) -> Vec<Change> {
        self.now += Duration::from_secs(1);
        let look = self.found();
        let changes = self.batching.handle_look(self.now, &look);
        for change in &changes {
            self.batching.done(self.now, change, Ok(()));
        }
        changes
    }

    /// So many seconds of bursts of one flow. Returns when something changed.
    fn run(&mut self, seconds: usize, burst: u64) -> Vec<(u64, bool)> {
        let mut changed = Vec::new();
        for _ in 0..seconds {
            self.send(0, BURSTS, burst);
            let changes = self.look();
            let at = self.now.duration_since(self.start).as_secs();
            changed.extend(changes.iter().map(|change| (at, change.on)));
        }
        changed
    }
}

#[test]
fn bursts_are_merged_after_some_seconds_and_singles_let_go_after_the_dwell() {
    let mut scene = Scene::new().with_flow();
    assert_eq!(scene.run(4, 32), [], "the first look is where counting begins, then three seconds");
    assert_eq!(scene.run(1, 32), [(5, true)]);
    assert_eq!(scene.run(9, 1), [], "it stays for its dwell");
    assert_eq!(scene.run(1, 1), [(15, false)]);
    assert_eq!(scene.run(20, 1), []);
}

#[test]
fn between_the_thresholds_everything_stays_as_it_is() {
    let mut scene = Scene::new().with_flow();
    assert_eq!(scene.run(60, 7), [], "not switched on below 8");
    assert_eq!(scene.run(10, 8).len(), 1);
    assert_eq!(scene.run(60, 6), [], "not switched off from 6 on");
    assert_eq!(scene.run(4, 5), [(134, false)]);
}

#[test]
fn voice_is_never_merged() {
    let mut scene = Scene::new().with_flow();
    assert_eq!(scene.run(300, 1), []);
}

#[test]
fn a_mean_that_wavers_switches_nothing() {
    let mut scene = Scene::new().with_flow();
    for _ in 0..30 {
        assert_eq!(scene.run(2, 32), []);
        assert_eq!(scene.run(2, 1), []);
    }
    assert_eq!(scene.run(5, 32).len(), 1);
    for _ in 0..30 {
        assert_eq!(scene.run(2, 1), []);
        assert_eq!(scene.run(1, 32), []);
    }
}

#[test]
fn the_flows_of_an_interface_count_by_their_packets() {
    // 13 bursts of 32 of a picture beside 50 packets of sound: 466 packets in 63 bursts.
    let seconds = |bursts: u32| {
        let mut scene = Scene::new().with_flow();
        scene.flow(IFINDEX);
        for _ in 0..20 {
            scene.send(0, bursts, 32);
            scene.send(1, 50, 1);
            scene.look();
        }
        scene.batching.status(IFINDEX, scene.now).unwrap()
    };
    let slow = seconds(13);
    assert!(!slow.on && slow.burst.is_some_and(|burst| (7.3..7.5).contains(&burst)), "{slow:?}");
    let fast = seconds(40);
    assert!(fast.on && fast.burst.is_some_and(|burst| burst > 14.0), "{fast:?}");
}

#[test]
fn interfaces_are_judged_each_by_its_own_flows() {
    let mut scene = Scene::new().with_flow();
    scene.flow(IFINDEX + 1);
    let mut changes = Vec::new();
    for _ in 0..10 {
        scene.send(0, BURSTS, 32);
        scene.send(1, 50, 1);
        changes.extend(scene.look());
    }
    assert_eq!(changes, [Change { ifindex: IFINDEX, on: true, why: Why::Burst(32.0) }]);
    assert!(!scene.batching.status(IFINDEX + 1, scene.now).unwrap().on);
}

#[test]
fn a_sender_of_super_packets_gains_nothing() {
    let mut scene = Scene::new().with_flow();
    for _ in 0..20 {
        scene.send(0, BURSTS, 32);
        // 32 packets were one buffer.
        let received = scene.received.get_mut(&IFINDEX).unwrap();
        *received -= u64::from(BURSTS) * 31;
        assert_eq!(scene.look(), []);
    }
    // It sends plain datagrams from now on, and again super-packets later.
    assert_eq!(scene.run(5, 32).len(), 1);
    let mut changes = Vec::new();
    for _ in 0..12 {
        scene.send(0, BURSTS, 32);
        let received = scene.received.get_mut(&IFINDEX).unwrap();
        *received -= u64::from(BURSTS) * 31;
        changes.extend(scene.look());
    }
    assert_eq!(changes, [Change { ifindex: IFINDEX, on: false, why: Why::SuperPackets(32.0) }]);
}

#[test]
fn nothing_is_switched_on_while_it_is_not_known_what_the_interface_received() {
    let mut scene = Scene::new().with_flow();
    for _ in 0..20 {
        scene.send(0, BURSTS, 32);
        scene.received.clear();
        assert_eq!(scene.look(), []);
    }
}

#[test]
fn a_source_that_falls_silent_is_let_go_and_forgotten() {
    let mut scene = Scene::new().with_flow();
    scene.run(5, 32);
    scene.flows.clear();
    let mut changes = Vec::new();
    for _ in 0..40 {
        changes.extend(scene.look());
    }
    assert_eq!(changes, [Change { ifindex: IFINDEX, on: false, why: Why::Idle }]);
    assert_eq!(scene.batching.status(IFINDEX, scene.now), None);
}

#[test]
fn statistics_that_begin_anew_are_no_burst() {
    let mut scene = Scene::new().with_flow();
    scene.run(4, 1);
    scene.flows[0].pace = Pace { packets: 3, bursts: 0 };
    scene.look();
    assert_eq!(scene.batching.status(IFINDEX, scene.now).unwrap().burst, None);
    // From another port.
    scene.flows[0].id.2 = [9; 2];
    scene.flows[0].pace = Pace { packets: 900_000, bursts: 1 };
    scene.look();
    assert_eq!(scene.batching.status(IFINDEX, scene.now).unwrap().burst, None);
}

#[test]
fn what_was_refused_is_said_and_tried_again_later() {
    let mut scene = Scene::new().with_flow();
    let mut tries = Vec::new();
    for second in 0..70 {
        scene.send(0, BURSTS, 32);
        scene.now += Duration::from_secs(1);
        let look = scene.found();
        for change in scene.batching.handle_look(scene.now, &look) {
            tries.push(second);
            scene.batching.done(scene.now, &change, Err("read-only".to_owned()));
        }
    }
    assert_eq!(tries, [4, 64]);
    let status = scene.batching.status(IFINDEX, scene.now).unwrap();
    assert_eq!((status.on, status.since, status.refused.as_deref()), (false, None, Some("read-only")));
}

#[test]
fn what_an_earlier_process_switched_on_is_let_go_like_ones_own() {
    let mut scene = Scene::new().with_flow();
    scene.batching.adopt(IFINDEX, scene.now);
    assert!(scene.batching.status(IFINDEX, scene.now).unwrap().on);
    assert_eq!(scene.run(30, 32), [], "it goes on");
    scene.batching.observe(&[IFINDEX]);
    assert!(scene.batching.status(IFINDEX, scene.now).unwrap().on);
    assert_eq!(scene.run(4, 1).len(), 1);
    scene.batching.adopt(IFINDEX, scene.now);
    scene.batching.observe(&[IFINDEX + 1]);
    assert!(!scene.batching.status(IFINDEX, scene.now).unwrap().on, "somebody else gave it back");
    scene.batching.retain(|ifindex| ifindex != IFINDEX);
    assert_eq!(scene.batching.status(IFINDEX, scene.now), None);
}

#[test]
fn the_fewer_viewers_a_burst_has_the_longer_it_must_be() {
    // Measured (B3): four viewers pay from about 21 packets on, sixteen from less than 8, one never.
    for (viewers, off, on, still_on, off_again) in
        [(1, 127, 128, 85, 83), (4, 31, 32, 22, 20), (16, 7, 8, 6, 5), (100, 7, 8, 5, 4)]
    {
        let mut scene = Scene::new().with_flow();
        scene.flows[0].viewers = viewers;
        assert_eq!(scene.run(30, off), [], "{viewers} viewers");
        assert_eq!(scene.run(10, on).len(), 1, "{viewers} viewers");
        assert_eq!(scene.run(30, still_on), [], "{viewers} viewers");
        assert_eq!(scene.run(10, off_again).len(), 1, "{viewers} viewers");
    }
}

#[test]
fn viewers_that_leave_end_what_no_longer_pays() {
    let mut scene = Scene::new().with_flow();
    assert_eq!(scene.run(20, 32).len(), 1);
    scene.flows[0].viewers = 2;
    assert_eq!(scene.run(4, 32), [(24, false)]);
}

#[test]
fn nothing_is_merged_for_more_viewers_than_the_backlog_has_room_for() {
    let mut scene = Scene::new().with_flow();
    scene.backlog = 1_000;
    assert_eq!(scene.run(30, 32), [], "64 packets of a poll for 16 viewers are 1,024 copies");
    let refused = scene.batching.status(IFINDEX, scene.now).unwrap().refused.unwrap();
    assert!(refused.contains("1000") && refused.contains("netdev_max_backlog=8192"), "{refused}");
    scene.flows[0].viewers = 15;
    assert_eq!(scene.run(10, 32).len(), 1);
    assert_eq!(scene.batching.status(IFINDEX, scene.now).unwrap().refused, None);
    // The next viewer comes: at once, whatever its dwell.
    scene.flows[0].viewers = 16;
    assert_eq!(scene.run(1, 32), [(41, false)]);
}

#[test]
fn bursts_that_the_ring_could_not_hold_are_not_merged() {
    let mut scene = Scene::new().with_flow();
    assert_eq!(scene.run(30, 129), []);
    let refused = scene.batching.status(IFINDEX, scene.now).unwrap().refused.unwrap();
    assert!(refused.contains("129 packets"), "{refused}");
    assert_eq!(scene.run(10, 128).len(), 1);
    assert_eq!(scene.run(20, 256), [], "hysteresis");
    assert_eq!(scene.run(1, 257).len(), 1);
    // Five cameras of a recorder may well send at the same moment.
    let mut scene = Scene::new();
    (0..5).for_each(|_| scene.flow(IFINDEX));
    for _ in 0..30 {
        (0..5).for_each(|flow| scene.send(flow, BURSTS, 32));
        assert_eq!(scene.look(), []);
    }
}

#[test]
fn a_ring_that_overflowed_is_let_go_at_once_and_for_long() {
    let mut scene = Scene::new().with_flow();
    scene.run(3, 32);
    scene.lost += 7;
    assert_eq!(scene.run(3, 32), [(5, true)], "what was lost before is not merging's");
    assert_eq!(scene.batching.lost(), 0);
    scene.lost += 40;
    scene.send(0, BURSTS, 32);
    let lost = Why::Obstacle(Obstacle::Lost(40));
    assert_eq!(scene.look(), [Change { ifindex: IFINDEX, on: false, why: lost }]);
    assert_eq!(scene.batching.lost(), 40);
    assert_eq!(scene.run(3_590, 32), []);
    assert!(scene.batching.status(IFINDEX, scene.now).unwrap().refused.unwrap().contains("40 packets"));
    assert_eq!(scene.run(20, 32).len(), 1);
    assert_eq!(scene.batching.status(IFINDEX, scene.now).unwrap().refused, None);
}
