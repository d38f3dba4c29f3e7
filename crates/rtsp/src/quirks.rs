//! Policies for what sources and publishers get wrong.
//!
//! Most rows of that table need no policy: the parsers accept what is sent. Those that need a choice are
//! named here, each with the makes and models it exists for. Where one behaviour serves every source it is
//! the default, and detection is not needed.

use std::time::Duration;

/// What to do when a source changes its session id within a session (RTSP-25).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SessionIdPolicy {
    /// Keep the first. H264DVR answers 231970 and 231980 in one session and expects the first.
    #[default]
    KeepFirst,
}

/// What an SSRC announced in SETUP is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AnnouncedSsrcPolicy {
    /// The first packets decide. Tapo C320WS sends another one than it announces, Hikvision iDS-2CD9396 and
    /// DS-2CD3641 write `ssrc= d6d6627`, H264DVR writes `ssrc=0`.
    #[default]
    FirstPacketsDecide,
}

/// Which UDP ports of a source's address are admitted (SEC-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SourcePortPolicy {
    /// The signalled `server_port`; learned and locked where none was signalled.
    #[default]
    Signalled,
    /// Any port until locked: sources that send from another port than they signalled (several, reported
    /// to gortsplib). A setting of the route, never detected.
    AnyPort,
}

/// Frames on channels that nothing is bound to (RTSP-41).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum UnknownChannelPolicy {
    /// Drop and count; close after 1000. Geovision sends stray packets of payload type 50, Reolink an SR
    /// before the PLAY reply.
    #[default]
    DropAndCount,
}

/// Which request keeps a session alive (RTSP-24).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeepalivePolicy {
    /// `OPTIONS` with the session.
    Options,
    /// `GET_PARAMETER`, because `Public` names it.
    GetParameter,
}

/// When the answer to a SETUP is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SetupReplyPolicy {
    /// At once.
    #[default]
    Immediate,
    /// After [`SLOW_SETUP_DELAY`]: rtspclientsink can lose a very fast answer.
    Delayed,
}

/// What a route allows for its publishers' quirks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SlowSetupPolicy {
    /// Every SETUP is answered at once.
    #[default]
    Never,
    /// SETUPs with `User-Agent: GStreamer` are answered late.
    GStreamer,
}

/// Delay of [`SetupReplyPolicy::Delayed`].
pub const SLOW_SETUP_DELAY: Duration = Duration::from_secs(1);

/// When a source's connection may carry a second DESCRIBE (RTSP-28).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DescribePolicy {
    /// Never: some cameras fail the second one, another connection is opened.
    #[default]
    OncePerConnection,
}

/// How a source wants to be treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SourceQuirks {
    /// Session ids.
    pub session_id: SessionIdPolicy,
    /// Announced SSRCs.
    pub ssrc: AnnouncedSsrcPolicy,
    /// Source ports.
    pub ports: SourcePortPolicy,
    /// Stray channels.
    pub unknown_channel: UnknownChannelPolicy,
    /// Second DESCRIBE.
    pub describe: DescribePolicy,
}

/// The keepalive for a source whose `Public` is `public`, absent if it sent none (RTSP-24).
///
/// GW4089IP fails on `GET_PARAMETER` and others close: it is used only where it is named. `OPTIONS` is
/// understood by all.
pub fn keepalive(public: Option<&str>) -> KeepalivePolicy {
    let named = public.is_some_and(|public| {
        public.split(',').any(|method| method.trim().eq_ignore_ascii_case("GET_PARAMETER"))
    });
    if named { KeepalivePolicy::GetParameter } else { KeepalivePolicy::Options }
}

/// When to answer a SETUP of a publisher with this `User-Agent`.
pub fn setup_reply(user_agent: Option<&str>, policy: SlowSetupPolicy) -> SetupReplyPolicy {
    match policy {
        SlowSetupPolicy::GStreamer if user_agent.is_some_and(|agent| agent.contains("GStreamer")) => {
            SetupReplyPolicy::Delayed
        }
        _ => SetupReplyPolicy::Immediate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn get_parameter_keeps_alive_only_where_public_names_it() {
        assert_eq!(keepalive(None), KeepalivePolicy::Options);
        assert_eq!(keepalive(Some("OPTIONS, DESCRIBE,PLAY")), KeepalivePolicy::Options);
        assert_eq!(keepalive(Some("OPTIONS,GET_PARAMETER , PLAY")), KeepalivePolicy::GetParameter);
        assert_eq!(keepalive(Some("X_GET_PARAMETER")), KeepalivePolicy::Options);
    }

    #[test]
    fn setup_is_answered_late_only_for_gstreamer_and_only_if_asked() {
        let agent = Some("GStreamer/1.22.0");
        assert_eq!(setup_reply(agent, SlowSetupPolicy::Never), SetupReplyPolicy::Immediate);
        assert_eq!(setup_reply(agent, SlowSetupPolicy::GStreamer), SetupReplyPolicy::Delayed);
        assert_eq!(setup_reply(Some("Lavf60"), SlowSetupPolicy::GStreamer), SetupReplyPolicy::Immediate);
        assert_eq!(setup_reply(None, SlowSetupPolicy::GStreamer), SetupReplyPolicy::Immediate);
    }
}
