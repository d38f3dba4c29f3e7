//! Order of rounds, medians, bootstrap intervals. Seeded, so that a report can be made again.

/// A small deterministic generator (xorshift64*).
#[derive(Debug)]
pub struct Shuffle(u64);

impl Shuffle {
    /// The same seed gives the same orders.
    pub fn seeded(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// A random permutation of `0..n`.
    pub fn order(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// The median; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// A quantile in 0..=1, by linear interpolation between order statistics; NaN of nothing.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// 95 % bootstrap interval of the median; NaN of nothing.
pub fn interval(values: &[f64]) -> (f64, f64) {
    let mut random = Shuffle::seeded(42);
    if values.is_empty() {
        return (f64::NAN, f64::NAN);
    }
    let medians: Vec<f64> = (0..2000)
        .map(|_| {
            let sample: Vec<f64> = (0..values.len()).map(|_| values[random.below(values.len())]).collect();
            median(&sample)
        })
        .collect();
    (quantile(&medians, 0.025), quantile(&medians, 0.975))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_a_permutation_and_repeats_with_its_seed() {
        let order = Shuffle::seeded(7).order(16);
        assert_eq!(order, Shuffle::seeded(7).order(16));
        let mut sorted = order;
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..16));
    }

    #[test]
    fn the_interval_of_a_median_encloses_it_and_narrows_with_agreement() {
        let wide: Vec<f64> = (0..15).map(f64::from).collect();
        let (low, high) = interval(&wide);
        assert!(low < 7.0 && high > 7.0);
        assert_eq!(interval(&[3.0; 9]), (3.0, 3.0));
        assert!((median(&[1.0, 2.0, 4.0, 8.0]) - 3.0).abs() < 1e-9);
        assert!(median(&[]).is_nan() && interval(&[]).0.is_nan());
    }
}
