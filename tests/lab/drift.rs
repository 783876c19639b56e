//! Whether a line of figures stays flat.

/// What a straight line through figures says of them.
pub struct Drift {
    pub mean: f64,
    /// From the first to the last, along the line.
    pub rise: f64,
    /// Two standard errors of that: noise alone makes it larger once in twenty times.
    pub noise: f64,
}

/// What of a rise can be said, given how much counts as none.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    Flat,
    Rises,
    Falls,
    /// Beyond the margin, but no further than noise goes.
    Noisy,
}

impl Verdict {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::Rises => "RISES",
            Self::Falls => "FALLS",
            Self::Noisy => "too noisy to say",
        }
    }
}

impl Drift {
    /// Least squares. Of fewer than three figures nothing can be said.
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    pub fn of(figures: &[f64]) -> Self {
        let count = figures.len() as f64;
        assert!(count >= 3.0, "{count} figures make no line");
        let middle = (count - 1.0) / 2.0;
        let mean = figures.iter().sum::<f64>() / count;
        let each = || figures.iter().enumerate().map(|(at, figure)| (at as f64 - middle, figure - mean));
        let spread: f64 = each().map(|(at, _)| at * at).sum();
        let slope = each().map(|(at, above)| at * above).sum::<f64>() / spread;
        let left: f64 = each().map(|(at, above)| (above - slope * at).powi(2)).sum();
        let error = (left / (count - 2.0) / spread).sqrt();
        Self { mean, rise: slope * (count - 1.0), noise: 2.0 * error * (count - 1.0) }
    }

    pub fn verdict(&self, margin: f64) -> Verdict {
        match self.rise {
            rise if rise.abs() <= margin => Verdict::Flat,
            rise if rise.abs() <= self.noise => Verdict::Noisy,
            rise if rise > 0.0 => Verdict::Rises,
            _ => Verdict::Falls,
        }
    }
}
