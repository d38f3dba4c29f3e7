//! Interfaces on which no rung works, and when to try again: a try costs the thread that answers every worker some
//! hundred milliseconds.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::hop::UserReason;
use super::net::Link;

/// First pause before an interface that is as it was is tried again; it doubles.
const PAUSE: Duration = Duration::from_secs(60);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(30 * 60);

#[derive(Debug)]
struct Refusal {
    link: Link,
    why: UserReason,
    until: Instant,
    pause: Duration,
}

/// What was refused, by the interface's index.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    known: HashMap<u32, Refusal>,
}

impl Refusals {
    /// Why an interface need not be tried now.
    pub(super) fn standing(&self, link: &Link, now: Instant) -> Option<&UserReason> {
        let refusal = self.known.get(&link.ifindex)?;
        (refusal.link == *link && now < refusal.until).then_some(&refusal.why)
    }

    /// An interface was tried in vain. Returns whether that is news.
    pub(super) fn note(&mut self, link: &Link, why: &UserReason, now: Instant) -> bool {
        let before = self.known.get(&link.ifindex);
        let is_same = before.is_some_and(|before| before.link == *link);
        let pause = before.filter(|_| is_same).map_or(PAUSE, |before| (before.pause * 2).min(LONGEST));
        let is_news = before.is_none_or(|before| before.why != *why);
        let refusal = Refusal { link: link.clone(), why: why.clone(), until: now + pause, pause };
        self.known.insert(link.ifindex, refusal);
        is_news
    }

    /// An interface took the program, or is gone.
    pub(super) fn forget(&mut self, ifindex: u32) {
        self.known.remove(&ifindex);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Link, &UserReason)> {
        self.known.values().map(|refusal| (&refusal.link, &refusal.why))
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    #[test]
    fn an_interface_that_stays_as_it_is_is_tried_ever_more_rarely_and_told_of_once() {
        let mut link = Link::of(&LinkMessage::default());
        let why = UserReason::NoEthernet("eth0".to_owned());
        let (mut refusals, mut now) = (Refusals::default(), Instant::now());
        let mut tries = Vec::new();
        for minute in 0..180_u64 {
            if refusals.standing(&link, now).is_none() {
                let is_news = refusals.note(&link, &why, now);
                assert_eq!(is_news, minute == 0, "minute {minute}");
                tries.push(minute);
            }
            now += PAUSE;
        }
        assert_eq!(tries, [0, 1, 3, 7, 15, 31, 61, 91, 121, 151]);
        link.up = !link.up;
        assert_eq!(refusals.standing(&link, now), None, "it has changed");
        assert!(!refusals.note(&link, &why, now), "the reason has not");
        assert_eq!(refusals.standing(&link, now), Some(&why));
        assert_eq!(refusals.standing(&link, now + PAUSE), None, "from the start again");
        let other = UserReason::NotNamed("eth0".to_owned());
        assert!(refusals.note(&link, &other, now));
        refusals.forget(link.ifindex);
        assert_eq!(refusals.iter().count(), 0);
    }
}
