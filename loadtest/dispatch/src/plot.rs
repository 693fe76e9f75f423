//! Lines over a few named places, with a logarithmic height, as SVG. Come in panels of series; goes out the text of the
//! file. Nothing is measured: the widths are constants.

use std::{collections::BTreeSet, fmt::Write as _};

/// One line. `None` where there is no number.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    pub values: Vec<Option<f64>>,
}

/// Lines that share their axes.
#[derive(Clone, Debug)]
pub struct Panel {
    pub title: String,
    pub series: Vec<Series>,
}

/// Panels side by side that share their scale and their legend.
#[derive(Clone, Debug)]
pub struct Chart {
    pub title: String,
    /// Below each panel.
    pub places: Vec<String>,
    pub panels: Vec<Panel>,
    /// What is lower is drawn at the bottom.
    pub floor: f64,
}

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 64.0;
const GAP: f64 = 24.0;
const LEGEND: f64 = 260.0;
/// Told apart also by who cannot tell red from green (Okabe and Ito), with black first and a grey last.
const COLOURS: [&str; 9] =
    ["#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b8a800", "#888888"];

impl Chart {
    pub fn svg(&self) -> String {
        let decades = self.decades();
        let panels = self.panels.len() as f64;
        let width = LEFT + panels * (WIDTH + GAP) + LEGEND;
        let height = TOP + HEIGHT + 44.0;
        let mut out = String::new();
        let _ = writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"sans-serif\" font-size=\"12\">"
        );
        let _ = writeln!(out, "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>");
        let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>", escaped(&self.title));
        for (at, panel) in self.panels.iter().enumerate() {
            let left = LEFT + at as f64 * (WIDTH + GAP);
            self.grid(&mut out, left, at == 0, decades);
            let _ = writeln!(out, "<text x=\"{left:.1}\" y=\"{:.1}\">{}</text>", TOP - 10.0, escaped(&panel.title));
            for (series, colour) in panel.series.iter().zip(COLOURS.iter().cycle()) {
                self.line(&mut out, left, series, colour, decades);
            }
        }
        self.legend(&mut out, width - LEGEND + 8.0);
        out.push_str("</svg>\n");
        out
    }

    /// Powers of ten below and above everything.
    fn decades(&self) -> (i32, i32) {
        let values = self.panels.iter().flat_map(|panel| &panel.series).flat_map(|series| &series.values);
        let most = values.flatten().copied().fold(self.floor * 10.0, f64::max);
        (self.floor.log10().floor() as i32, most.log10().ceil() as i32)
    }

    fn grid(&self, out: &mut String, left: f64, labels: bool, (low, high): (i32, i32)) {
        for decade in low..=high {
            let y = height_of(10_f64.powi(decade), (low, high));
            let right = left + WIDTH;
            let _ = writeln!(
                out,
                "<line x1=\"{left:.1}\" y1=\"{y:.1}\" x2=\"{right:.1}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>"
            );
            if labels {
                let _ = writeln!(
                    out,
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                    left - 6.0,
                    y + 4.0,
                    10_f64.powi(decade)
                );
            }
        }
        for (place, name) in self.places.iter().enumerate() {
            let (x, y) = (self.place(left, place), TOP + HEIGHT + 18.0);
            let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{}</text>", escaped(name));
        }
    }

    fn place(&self, left: f64, place: usize) -> f64 {
        left + WIDTH * (place as f64 + 0.5) / self.places.len() as f64
    }

    fn line(&self, out: &mut String, left: f64, series: &Series, colour: &str, decades: (i32, i32)) {
        let known = series.values.iter().enumerate().filter_map(|(place, value)| Some((place, (*value)?)));
        let points: Vec<(f64, f64)> =
            known.map(|(place, value)| (self.place(left, place), height_of(value.max(self.floor), decades))).collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for (x, y) in points {
            let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
    }

    fn legend(&self, out: &mut String, left: f64) {
        let mut named = BTreeSet::new();
        let series = self.panels.iter().flat_map(|panel| panel.series.iter().zip(COLOURS.iter().cycle()));
        for (series, colour) in series {
            if !named.insert(&series.name) {
                continue;
            }
            let y = TOP + 20.0 * named.len() as f64;
            let _ = writeln!(
                out,
                "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"14\" height=\"4\" fill=\"{colour}\"/>",
                y - 6.0
            );
            let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{y:.1}\">{}</text>", left + 20.0, escaped(&series.name));
        }
    }
}

fn height_of(value: f64, (low, high): (i32, i32)) -> f64 {
    let share = (value.log10() - f64::from(low)) / f64::from(high - low);
    TOP + HEIGHT * (1.0 - share)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_larger_is_drawn_higher_and_what_is_missing_is_not_drawn() {
        let series = |name: &str, values: &[Option<f64>]| Series { name: name.to_owned(), values: values.to_vec() };
        let chart = Chart {
            title: "a < b".to_owned(),
            places: vec!["50 %".to_owned(), "90 %".to_owned()],
            panels: vec![Panel {
                title: "one".to_owned(),
                series: vec![series("x", &[Some(1.0), Some(100.0)]), series("y", &[None, Some(0.0)])],
            }],
            floor: 0.1,
        };
        let svg = chart.svg();
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"));
        let lines: Vec<&str> = svg.lines().filter(|line| line.starts_with("<polyline")).collect();
        assert_eq!(lines.len(), 2);
        let points: Vec<(f64, f64)> = lines[0]
            .split('"')
            .nth(1)
            .unwrap()
            .split(' ')
            .map(|point| point.split_once(',').unwrap())
            .map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()))
            .collect();
        assert!(points[0].0 < points[1].0 && points[0].1 > points[1].1, "{points:?}");
        assert!(lines[1].contains(&format!(",{:.1}\"", TOP + HEIGHT)), "0 is at the floor: {}", lines[1]);
        assert!(!lines[1].contains(' ') || lines[1].matches(',').count() == 1);
    }
}
