//! How long requests occupy a slot: a distribution, or the numbers of a file. Comes in its description on the command
//! line, go out draws and the mean.

use rand::{Rng, RngExt};
use std::{f64::consts::PI, fmt, fs, io, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

/// Times are in milliseconds.
#[derive(Clone, Debug)]
pub enum Service {
    Exponential {
        mean: f64,
    },
    Fixed {
        time: f64,
    },
    /// `share` of the requests take `long`, the others `short`.
    Bimodal {
        short: f64,
        long: f64,
        share: f64,
    },
    /// The logarithm has the standard deviation `sigma`.
    LogNormal {
        mean: f64,
        sigma: f64,
    },
    /// Bounded on both sides.
    Pareto {
        least: f64,
        most: f64,
        alpha: f64,
    },
    /// Each as likely as the others.
    File {
        path: PathBuf,
        times: Arc<[f64]>,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum Mistake {
    #[error(
        "service times are one of exp:MEAN, fixed:TIME, bimodal:SHORT,LONG,SHARE, lognormal:MEAN,SIGMA, pareto:LEAST,MOST,ALPHA (all times in ms), file:PATH"
    )]
    Form,
    #[error("every time must be more than 0, a share between 0 and 1, and the bounds in order")]
    Range,
    #[error("cannot read {0}: {1}")]
    File(String, io::Error),
    #[error("{0} has no line with a number of milliseconds")]
    Empty(String),
    #[error("{file}: line {line} is not a number of milliseconds")]
    Line { file: String, line: usize },
}

impl FromStr for Service {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<Self, Mistake> {
        let (kind, rest) = text.split_once(':').ok_or(Mistake::Form)?;
        if kind == "file" {
            return Self::of_file(rest);
        }
        let numbers: Vec<f64> =
            rest.split(',').map(|number| number.trim().parse().map_err(|_| Mistake::Form)).collect::<Result<_, _>>()?;
        let service = match (kind, numbers.as_slice()) {
            ("exp", &[mean]) => Self::Exponential { mean },
            ("fixed", &[time]) => Self::Fixed { time },
            ("bimodal", &[short, long, share]) => Self::Bimodal { short, long, share },
            ("lognormal", &[mean, sigma]) => Self::LogNormal { mean, sigma },
            ("pareto", &[least, most, alpha]) => Self::Pareto { least, most, alpha },
            _ => return Err(Mistake::Form),
        };
        let sound = numbers.iter().all(|number| number.is_finite() && *number > 0.0)
            && match service {
                Self::Bimodal { share, .. } => share < 1.0,
                Self::Pareto { least, most, .. } => least < most,
                _ => true,
            };
        if sound { Ok(service) } else { Err(Mistake::Range) }
    }
}

impl Service {
    fn of_file(path: &str) -> Result<Self, Mistake> {
        let text = fs::read_to_string(path).map_err(|error| Mistake::File(path.to_owned(), error))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let times: Vec<f64> = lines
            .map(|(at, line)| {
                let time = line.trim().parse().ok().filter(|time: &f64| time.is_finite() && *time > 0.0);
                time.ok_or_else(|| Mistake::Line { file: path.to_owned(), line: at + 1 })
            })
            .collect::<Result<_, _>>()?;
        if times.is_empty() {
            return Err(Mistake::Empty(path.to_owned()));
        }
        Ok(Self::File { path: path.into(), times: times.into() })
    }

    /// In milliseconds.
    pub fn mean(&self) -> f64 {
        match self {
            Self::Exponential { mean } | Self::LogNormal { mean, .. } => *mean,
            Self::Fixed { time } => *time,
            Self::Bimodal { short, long, share } => short * (1.0 - share) + long * share,
            Self::Pareto { least, most, alpha } => pareto_mean(*least, *most, *alpha),
            Self::File { times, .. } => times.iter().sum::<f64>() / times.len() as f64,
        }
    }

    pub fn draw(&self, rng: &mut impl Rng) -> Duration {
        let time = match self {
            Self::Exponential { mean } => exponential(rng) * mean,
            Self::Fixed { time } => *time,
            Self::Bimodal { short, long, share } => {
                if rng.random::<f64>() < *share {
                    *long
                } else {
                    *short
                }
            }
            Self::LogNormal { mean, sigma } => mean * (sigma * normal(rng) - sigma * sigma / 2.0).exp(),
            Self::Pareto { least, most, alpha } => {
                let tail = 1.0 - (least / most).powf(*alpha);
                least / (1.0 - rng.random::<f64>() * tail).powf(1.0 / alpha)
            }
            Self::File { times, .. } => times[rng.random_range(0..times.len())],
        };
        Duration::from_secs_f64(time / 1e3)
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exponential { mean } => write!(f, "exp:{mean}"),
            Self::Fixed { time } => write!(f, "fixed:{time}"),
            Self::Bimodal { short, long, share } => write!(f, "bimodal:{short},{long},{share}"),
            Self::LogNormal { mean, sigma } => write!(f, "lognormal:{mean},{sigma}"),
            Self::Pareto { least, most, alpha } => write!(f, "pareto:{least},{most},{alpha}"),
            Self::File { path, .. } => write!(f, "file:{}", path.display()),
        }
    }
}

/// With mean 1.
pub(crate) fn exponential(rng: &mut impl Rng) -> f64 {
    -(1.0 - rng.random::<f64>()).ln()
}

/// By Box and Muller; the second number is thrown away.
fn normal(rng: &mut impl Rng) -> f64 {
    let radius = (2.0 * exponential(rng)).sqrt();
    radius * (2.0 * PI * rng.random::<f64>()).cos()
}

fn pareto_mean(least: f64, most: f64, alpha: f64) -> f64 {
    let tail = 1.0 - (least / most).powf(alpha);
    if (alpha - 1.0).abs() < 1e-9 {
        return least * (most / least).ln() / tail;
    }
    alpha / (alpha - 1.0) * least * (1.0 - (least / most).powf(alpha - 1.0)) / tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::SmallRng};

    #[test]
    fn draws_have_the_mean_that_is_promised() {
        for text in ["exp:20", "fixed:7", "bimodal:20,200,0.1", "lognormal:30,1", "pareto:5,1000,1.5", "pareto:5,500,1"]
        {
            let service: Service = text.parse().unwrap();
            let mut rng = SmallRng::seed_from_u64(1);
            let draws = 400_000;
            let sum: f64 = (0..draws).map(|_| service.draw(&mut rng).as_secs_f64() * 1e3).sum();
            let mean = sum / f64::from(draws);
            assert!((mean / service.mean() - 1.0).abs() < 0.02, "{text}: {mean} instead of {}", service.mean());
            assert_eq!(service.to_string(), text);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["", "exp", "exp:0", "exp:-1", "exp:1,2", "bimodal:1,2,1.5", "pareto:9,5,1", "gauss:1", "file:"] {
            assert!(text.parse::<Service>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_of_times_is_drawn_from_and_its_mistakes_are_named() {
        let file = std::env::temp_dir().join(format!("servery-times-{}", std::process::id()));
        let parse = |text: &str| {
            fs::write(&file, text).unwrap();
            format!("file:{}", file.display()).parse::<Service>()
        };
        let service = parse("10\n\n 30 \n").unwrap();
        assert!((service.mean() - 20.0).abs() < 1e-9);
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..20 {
            assert!([10, 30].contains(&service.draw(&mut rng).as_millis()));
        }
        assert!(matches!(parse("10\nten\n"), Err(Mistake::Line { line: 2, .. })));
        assert!(matches!(parse("\n"), Err(Mistake::Empty(_))));
        fs::remove_file(&file).unwrap();
    }
}
