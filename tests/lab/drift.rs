//! Decides whether a line of measurements stays flat.

/// The straight line through measurements.
pub struct Drift {
    pub mean: f64,
    /// The rise from the first to the last measurement, along the line.
    pub rise: f64,
    /// Two standard errors of the rise. With noise alone, the rise is larger in one of twenty cases.
    pub noise: f64,
}

/// The verdict about a rise, for a margin that still counts as flat.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    Flat,
    Rises,
    Falls,
    /// The rise is above the margin, but noise alone may cause it.
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
    /// Computes the line by least squares. Needs at least three measurements.
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    pub fn of(figures: &[f64]) -> Self {
        let count = figures.len() as f64;
        assert!(count >= 3.0, "{count} measurements are too few for a line");
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
