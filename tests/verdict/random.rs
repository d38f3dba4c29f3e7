//! Random numbers that are the same in every run, unless a seed is given.

use anyhow::{Context as _, Result};
use msm_tests::privilege::environment;

/// Another seed than the fixed one, decimal or hexadecimal after `0x`.
const ENV_SEED: &str = "MSM_TEST_SEED";
/// How many cases, where a test has a number of them.
const ENV_CASES: &str = "MSM_TEST_CASES";
const DEFAULT_SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// xorshift64.
pub(crate) struct Random(u64);

impl Random {
    /// From the environment's seed or the fixed one, which is printed with the test's name.
    pub(crate) fn seeded(test: &str) -> Result<Self> {
        let seed = match environment(ENV_SEED) {
            None => DEFAULT_SEED,
            Some(text) => match text.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16),
                None => text.parse(),
            }
            .with_context(|| format!("{ENV_SEED}={text}"))?,
        };
        eprintln!("{test}: {ENV_SEED}={seed:#x}");
        // Zero would stay zero.
        Ok(Self(if seed == 0 { DEFAULT_SEED } else { seed }))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }
}

/// How many cases a test runs, if the environment does not say.
pub(crate) fn cases(default: u32) -> Result<u32> {
    match environment(ENV_CASES) {
        None => Ok(default),
        Some(text) => text.parse().with_context(|| format!("{ENV_CASES}={text}")),
    }
}
