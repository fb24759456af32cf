//! The run as a picture: faults, phases and roles over time, and below them what clients had of it.

use std::fmt::Write as _;
use std::time::Duration;

use proto::Moment;

use super::super::Ran;
use super::super::drill::Drill;
use super::super::roles::{Role, Seen};
use super::escape;
use super::series::{STEP, latencies, rates};
use crate::checker::{Outcome, What};

/// Room for the names of the rows, which stay in sight, for the names of faults above them, and for those of the last ones.
const NAMES: f64 = 110.0;
const TOP: f64 = 120.0;
const RIGHT: f64 = 80.0;

/// Between the names of two faults at least.
const NAME_APART: f64 = 13.0;

/// So wide at least, and a second at most, in pixels. A long run gets less, so that its picture can still be drawn.
const LEAST_WIDTH: f64 = 1_000.0;
const SECOND: f64 = 12.0;
const GREATEST_WIDTH: f64 = 14_000.0;

const ROW: f64 = 18.0;
const GRAPH: f64 = 110.0;
const GAP: f64 = 26.0;

/// The classes by which the style of the page gives everything its color, for paper and for the dark.
const BROKEN: &str = "broken";
const RETURNING: &str = "returning";
const WRITES: &str = "writes";
const READS: &str = "reads";
const LATENCY: &str = "latency";

/// Above this a latency is drawn at the upper edge: in milliseconds.
const LATENCY_EDGE: f64 = 1_000.0;

/// How a graph goes up.
#[derive(Debug, Clone, Copy)]
enum Scale {
    Linear,
    /// From 1 to this.
    Log(f64),
}

impl Scale {
    /// The values at the lower and the upper edge.
    fn edges(self, greatest: f64) -> (f64, f64) {
        match self {
            Scale::Linear => (0.0, greatest),
            Scale::Log(edge) => (1.0, edge),
        }
    }

    /// How far up a value is drawn, from 0 to 1.
    fn part(self, value: f64, greatest: f64) -> f64 {
        let part = match self {
            Scale::Linear => value / greatest,
            Scale::Log(edge) => value.max(1.0).ln() / edge.ln(),
        };
        part.min(1.0)
    }
}

fn class_of_role(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Standby => "standby",
        Role::Down => "down",
        Role::Silent => "silent",
    }
}

fn class_of_phase(phase: &str) -> &'static str {
    match phase {
        "open" => "open",
        "joint" => "joint",
        "sealing" => "sealing",
        "promoting" => "promoting",
        "switchover" => "switchover",
        _ => "silent",
    }
}

/// Says what the colors mean.
pub fn legend() -> String {
    let roles = [
        ("primary", Role::Primary),
        ("standby", Role::Standby),
        ("PostgreSQL down", Role::Down),
        ("no report", Role::Silent),
    ];
    let phases = ["open", "joint", "sealing", "promoting", "switchover"];
    let groups = [
        ("faults", vec![("broken", BROKEN), ("given back, not yet redundant", RETURNING)]),
        ("phase", phases.map(|phase| (phase, class_of_phase(phase))).to_vec()),
        ("members", roles.map(|(name, role)| (name, class_of_role(role))).to_vec()),
    ];
    let entry =
        |(name, class): (&str, &str)| format!("<span class=\"{class}\"></span>{}", escape(name));
    let group = |(name, entries): (&str, Vec<(&str, &str)>)| {
        format!("{name}:{} ", entries.into_iter().map(entry).collect::<String>())
    };
    groups.into_iter().map(|g| format!("<p class=\"legend\">{}</p>\n", group(g))).collect()
}

/// Draws it.
pub fn draw(ran: &Ran) -> String {
    let seconds = ran.until.since(ran.from).as_secs_f64().max(1.0);
    let scale = (seconds * SECOND).clamp(LEAST_WIDTH, GREATEST_WIDTH) / seconds;
    let (names, svg) = (String::new(), String::new());
    let mut picture = Picture { from: ran.from, scale, seconds, y: TOP, names, svg };
    let rows = ran.seen.last().map_or(0, |seen| seen.roles.len()) + 1;
    let height = TOP + rows as f64 * (ROW + 4.0) + 3.0 * (GRAPH + GAP) + 40.0;
    picture.faults(&ran.drills, height);
    picture.row("phase", &ran.seen, ran.until, |seen| Some(class_of_phase(seen.phase)));
    let members = ran.seen.last().map(|seen| seen.roles.keys().cloned().collect::<Vec<_>>());
    for member in members.unwrap_or_default() {
        let class = |seen: &Seen| seen.roles.get(&member).map(|role| class_of_role(*role));
        picture.row(&format!("member {member}"), &ran.seen, ran.until, class);
    }
    let acks = || ran.told.acknowledged.iter();
    let writes = rates(ran.from, ran.until, acks().map(|ack| ack.acked));
    picture.graph(
        "commits/s",
        WRITES,
        &writes.into_iter().map(Some).collect::<Vec<_>>(),
        Scale::Linear,
    );
    let is_read = |what: &What| matches!(what, What::Newest(_) | What::Total(_));
    let done = ran.operations.iter().filter(|o| o.outcome == Outcome::Done && is_read(&o.what));
    let reads = rates(ran.from, ran.until, done.map(|o| o.ended));
    picture.graph(
        "reads/s",
        READS,
        &reads.into_iter().map(Some).collect::<Vec<_>>(),
        Scale::Linear,
    );
    let took = acks().map(|ack| (ack.acked, ack.acked.since(ack.invoked)));
    let p99 = latencies(ran.from, ran.until, took);
    picture.graph("commit p99, ms", LATENCY, &p99, Scale::Log(LATENCY_EDGE));
    picture.axis();
    let drawing = |width: f64, class: &str, content: &str| {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"{class}\" width=\"{width:.0}\" height=\"{height:.0}\" \
             font-family=\"system-ui, sans-serif\" font-size=\"11\">\n{content}</svg>"
        )
    };
    let names = drawing(NAMES, "names", &picture.names);
    names + &drawing(seconds * scale + RIGHT, "times", &picture.svg)
}

struct Picture {
    from: Moment,
    /// Pixels for a second.
    scale: f64,
    seconds: f64,
    /// Where the next row begins.
    y: f64,
    /// The names of the rows, beside the picture.
    names: String,
    svg: String,
}

impl Picture {
    fn x(&self, at: Moment) -> f64 {
        at.since(self.from).as_secs_f64() * self.scale
    }

    /// Bands behind everything else, with their names above them.
    fn faults(&mut self, drills: &[Drill], height: f64) {
        let mut name_at = 0.0_f64;
        for drill in drills {
            let (struck, mended) = (self.x(drill.struck), self.x(drill.mended));
            let redundant = self.x(drill.redundant);
            for (from, to, class) in [(struck, mended, BROKEN), (mended, redundant, RETURNING)] {
                let (width, tall) = ((to - from).max(1.0), height - TOP - 30.0);
                let _ = writeln!(
                    self.svg,
                    "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{tall:.1}\" class=\"{class} behind\"/>"
                );
            }
            name_at = (name_at + NAME_APART).max(struck + 4.0);
            let name = escape(drill.fault.name());
            let _ = writeln!(
                self.svg,
                "<text transform=\"translate({name_at:.1},{:.1}) rotate(-60)\" class=\"fault\">{name} {}<title>{}: writes away for \
                 {:.0} ms</title></text>",
                TOP - 4.0,
                drill.victim,
                escape(&drill.fault.describe(&drill.victim)),
                drill.gap.as_secs_f64() * 1e3
            );
        }
    }

    /// A row of bars, each from one change to the next.
    fn row(
        &mut self,
        name: &str,
        seen: &[Seen],
        until: Moment,
        class: impl Fn(&Seen) -> Option<&'static str>,
    ) {
        self.name(name, ROW / 2.0 + 4.0);
        for (at, one) in seen.iter().enumerate() {
            let end = seen.get(at + 1).map_or(until, |next| next.at);
            let Some(class) = class(one) else { continue };
            let (from, to) = (self.x(one.at), self.x(end));
            let _ = writeln!(
                self.svg,
                "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.2}\" height=\"{ROW}\" class=\"{class}\"/>",
                self.y,
                (to - from).max(0.0)
            );
        }
        self.y += ROW + 4.0;
    }

    /// A line over time, broken where there is no number.
    fn graph(&mut self, name: &str, class: &str, values: &[Option<f64>], scale: Scale) {
        self.y += GAP / 2.0;
        let greatest = values.iter().flatten().copied().fold(1.0, f64::max);
        let (least, most) = scale.edges(greatest);
        self.name(name, GRAPH / 2.0);
        self.name(&format!("{most:.0}"), 8.0);
        self.name(&format!("{least:.0}"), GRAPH);
        let base = self.y + GRAPH;
        for y in [self.y, base] {
            let right = self.seconds * self.scale;
            let _ = writeln!(
                self.svg,
                "<line x1=\"0\" x2=\"{right:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
            );
        }
        let mut path = String::new();
        let mut is_open = false;
        for (step, value) in (0_u32..).zip(values) {
            let Some(value) = value else {
                is_open = false;
                continue;
            };
            let x = self.x(self.from + STEP * step + STEP / 2);
            let y = base - scale.part(*value, greatest) * GRAPH;
            let _ = write!(path, "{}{x:.1} {y:.1}", if is_open { 'L' } else { 'M' });
            is_open = true;
        }
        let _ = writeln!(self.svg, "<path d=\"{path}\" class=\"{class}\"/>");
        self.y += GRAPH + GAP / 2.0;
    }

    fn name(&mut self, text: &str, below: f64) {
        let _ = writeln!(
            self.names,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            NAMES - 8.0,
            self.y + below,
            escape(text)
        );
    }

    fn axis(&mut self) {
        let step = [5.0, 10.0, 30.0, 60.0].into_iter().find(|step| step * self.scale > 50.0);
        let step = Duration::from_secs_f64(step.unwrap_or(300.0));
        let y = self.y + 14.0;
        let mut at = self.from;
        while at.since(self.from).as_secs_f64() <= self.seconds {
            let text = format!("{:.0} s", at.since(self.from).as_secs_f64());
            let _ = writeln!(
                self.svg,
                "<text x=\"{:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{text}</text>",
                self.x(at).max(10.0)
            );
            at = at + step;
        }
    }
}
