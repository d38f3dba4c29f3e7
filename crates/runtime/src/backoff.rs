//! Growing pauses between retries, as a value: the caller owns the clock and the randomness.

use std::time::Duration;

/// Doubles from `first` to `longest`; [`Backoff::reset`] starts over.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses of `first`, twice that, and so on, none longer than `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The pause to make now. The next one is twice as long.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next.min(self.longest);
        self.next = pause.saturating_mul(2).min(self.longest);
        pause
    }

    /// The last try succeeded.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_over_after_success() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(10), ms(70));
        let pauses: Vec<_> = (0..5).map(|_| backoff.pause()).collect();
        assert_eq!(pauses, [ms(10), ms(20), ms(40), ms(70), ms(70)]);
        backoff.reset();
        assert_eq!(backoff.pause(), ms(10));
    }
}
