//! Which tests prove the cases that must pass on every rung, and what carries their media on a kernel rung.

/// What carries the UDP legs of a case where the rung that was asked for is one of the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// That rung.
    Kernel,
    /// The workers, rightly.
    Worker {
        /// Why, for people.
        because: &'static str,
        /// Part of the reason that `/v1/streams` gives for each leg over UDP; none: the case has no such leg.
        shown: Option<&'static str>,
    },
    /// Both: that rung, but for the legs that it cannot carry, which are the workers' beside the others of
    /// the same stream.
    Mixed {
        /// Why, for people.
        because: &'static str,
        /// Part of the reason that `/v1/streams` gives for each of those, and for no other.
        shown: &'static str,
    },
}

/// One test of a case.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its number in the list of conformance cases, or what else it is about.
    pub number: &'static str,
    /// Directory of `tests/`.
    pub suite: &'static str,
    /// The test, with its module.
    pub test: &'static str,
    /// What carries its media.
    pub carried: Carried,
}

const fn case(number: &'static str, suite: &'static str, test: &'static str) -> Case {
    Case { number, suite, test, carried: Carried::Kernel }
}

const fn by_worker(case: Case, because: &'static str, shown: Option<&'static str>) -> Case {
    Case { carried: Carried::Worker { because, shown }, ..case }
}

const CONFORMANCE: &str = "conformance";
const TOPOLOGY: &str = "topology";

/// Every test that is run on every rung.
pub const CASES: &[Case] = &[
    case("4", CONFORMANCE, "transports::udp_media_comes_from_the_address_named_and_rtcp_goes_back_to_it"),
    case("7", CONFORMANCE, "sharing::twenty_viewers_share_one_upstream_session_that_ends_after_the_last"),
    case(
        "7",
        CONFORMANCE,
        "sharing::simultaneous_viewers_cause_one_describe_one_setup_per_track_and_one_play",
    ),
    case("8", CONFORMANCE, "joining::the_first_packet_of_every_join_is_the_one_in_rtp_info"),
    case("8, 9", CONFORMANCE, "joining::real_players_get_the_packet_in_rtp_info_first"),
    case(
        "8",
        CONFORMANCE,
        "joining::a_player_that_joins_shows_its_first_picture_within_half_a_second_of_stream",
    ),
    by_worker(
        case("9", CONFORMANCE, "joining::a_stopped_ffmpeg_goes_on_with_whole_pictures"),
        "publisher and viewers are interleaved: the case is about what waits on an RTSP connection",
        None,
    ),
    case("9", CONFORMANCE, "joining::a_stalled_reader_finds_whole_frames_and_answers"),
    case("20", TOPOLOGY, "addresses::a_victim_named_as_destination_is_403_and_gets_no_packet"),
    case("21", TOPOLOGY, "addresses::a_port_spray_at_the_inputs_of_a_camera_is_counted_and_reaches_nobody"),
    case(
        "flood",
        TOPOLOGY,
        "hostile_flood::a_flood_from_a_cameras_own_port_is_counted_by_its_reasons_and_nobody_misses_a_packet",
    ),
    case("22", TOPOLOGY, "addresses::punches_of_players_reach_neither_the_camera_nor_teach_a_destination"),
    case("23", TOPOLOGY, "splice::a_rebooted_camera_continues_every_leg_at_the_next_sequence_number"),
    case("23", TOPOLOGY, "splice::ffmpeg_and_rtspsrc_decode_on_when_ssrc_sequence_and_timestamp_change"),
    case("24", TOPOLOGY, "reports::a_camera_that_says_bye_and_goes_on_is_played_on"),
    case(
        "24",
        TOPOLOGY,
        "reports::the_end_of_the_proxy_is_a_bye_to_every_viewer_and_a_teardown_to_the_camera",
    ),
    case("25", TOPOLOGY, "reports::sender_reports_are_mapped_to_the_tick_after_a_switch"),
    case("25", TOPOLOGY, "lip_sync::picture_and_sound_stay_together_when_a_pulled_camera_restarts"),
    case("25", TOPOLOGY, "lip_sync::picture_and_sound_stay_together_when_a_publisher_comes_back"),
    case("26", TOPOLOGY, "reports::loss_and_jitter_are_those_that_tshark_finds_on_a_captured_leg"),
    case("27", TOPOLOGY, "reports::a_camera_with_many_viewers_gets_one_stream_of_receiver_reports"),
    Case {
        carried: Carried::Mixed {
            because: "the kernel programs keep the IP version of a packet",
            shown: "a viewer of another address family than its source",
        },
        ..case(
            "44",
            TOPOLOGY,
            "families::an_ipv6_viewer_plays_an_ipv4_camera_and_an_ipv4_viewer_an_ipv6_camera",
        )
    },
];
