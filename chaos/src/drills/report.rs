//! The report of a run: one HTML file without outside assets, with the run as a picture and its figures.

mod picture;
mod series;

use std::fmt::Write as _;

use super::Ran;
use super::outcome::{Outcome, Spread};

/// `--c` is the color of a thing of the picture, by its class.
const STYLE: &str = "
:root { --ink: #1c2733; --faint: #66727f; --line: #dfe5ec; --paper: #ffffff; --good: #1a7f4b; --bad: #c22f2f;
  --code: #f2f5f8; --fault: #7a1f1f; color-scheme: light dark; }
body { font: 14px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto; max-width: 76rem;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.verdict { font-weight: 600; } .good { color: var(--good); } .bad { color: var(--bad); }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; }
.tile { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .9rem; min-width: 6rem; }
.tile b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; } .tile span { color: var(--faint); }
.picture { display: flex; overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
.picture svg { flex: none; } .picture .names { position: sticky; left: 0; background: var(--paper); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); } th { color: var(--faint); font-weight: 500; }
th:first-child, td:first-child, td.words, th.words { text-align: left; }
tr.over td { color: var(--bad); font-weight: 600; }
code { background: var(--code); padding: .1rem .3rem; border-radius: 3px; }
.legend { margin: .2rem 0; color: var(--faint); } .picture { margin-top: .6rem; }
.legend span { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin: 0 .3rem 0 1rem; vertical-align: -1px; }
.legend span { background: var(--c); }
.picture text { fill: var(--faint); } .picture .fault { fill: var(--fault); } .picture line { stroke: var(--line); }
.picture rect { fill: var(--c); } .picture .behind { opacity: .45; }
.picture path { fill: none; stroke: var(--c); stroke-width: 1.3; }
.broken { --c: #e8a0a0; } .returning { --c: #f3dfb0; }
.writes, .primary { --c: #2a6fbb; } .reads { --c: #3d9970; } .latency, .switchover { --c: #8e5ea2; }
.standby { --c: #b9cfe6; } .down { --c: #d9534f; } .silent { --c: #55606c; }
.open { --c: #d6ead9; } .joint { --c: #a9d18e; } .sealing { --c: #a8541c; } .promoting { --c: #f0ad4e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dde4ec; --faint: #93a1b0; --line: #2d3844; --paper: #12181f; --good: #4cc38a; --bad: #ff7b72;
    --code: #1d2630; --fault: #f0a8a0; }
  .broken { --c: #b04a4a; } .returning { --c: #806c2c; }
  .writes, .primary { --c: #58a0e8; } .reads { --c: #55bf90; } .latency, .switchover { --c: #b78ad0; }
  .standby { --c: #2c4766; } .down { --c: #e5534b; } .silent { --c: #8b96a3; }
  .picture .behind { opacity: .3; }
  .open { --c: #1f3b2b; } .joint { --c: #55903f; } .sealing { --c: #d07a3c; }
}
";

/// Returns the whole page.
pub fn page(ran: &Ran) -> String {
    let outcome = &ran.outcome;
    let mut page =
        String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n");
    let _ = write!(
        page,
        "<meta name=\"viewport\" content=\"width=device-width\">\n<title>pgdeputy drills</title>\n<style>{STYLE}</style>\
         </head><body>\n<h1>pgdeputy drills</h1>\n"
    );
    page.push_str(&verdict(outcome));
    page.push_str(&tiles(outcome));
    page.push_str("<h2>The run</h2>\n");
    page.push_str(&picture::legend());
    let _ = writeln!(page, "<div class=\"picture\">{}</div>", picture::draw(ran));
    page.push_str("<h2>By fault</h2>\n");
    page.push_str(&by_fault(outcome));
    page.push_str("<h2>Drill by drill</h2>\n");
    page.push_str(&drills(outcome));
    let _ = write!(page, "<p><code>{}</code></p>\n</body></html>\n", escape(&outcome.last_line()));
    page
}

fn verdict(outcome: &Outcome) -> String {
    if outcome.good {
        return "<p class=\"verdict good\">Nothing was lost, never did two primaries acknowledge, nothing that was read is \
                gone, and redundancy came back by itself each time.</p>\n"
            .into();
    }
    let mut text =
        String::from("<p class=\"verdict bad\">Something was not as it must be:</p>\n<ul>\n");
    for finding in &outcome.findings {
        let _ = writeln!(text, "<li class=\"bad\">{}</li>", escape(finding));
    }
    text + "</ul>\n"
}

fn tiles(outcome: &Outcome) -> String {
    let ms = |value: f64| format!("{value:.0} ms");
    let Spread { p50, p99, max } = outcome.write_gap_ms;
    let tiles = [
        ("faults", outcome.faults.to_string()),
        ("classes", outcome.classes.to_string()),
        ("lost", outcome.lost.to_string()),
        ("dual", outcome.dual.to_string()),
        ("vanished", outcome.vanished.to_string()),
        ("unredundant", outcome.unredundant.to_string()),
        ("stale reads", outcome.stale.to_string()),
        ("write gap p50", ms(p50)),
        ("write gap p99", ms(p99)),
        ("write gap max", ms(max)),
        ("commits", outcome.acknowledged.to_string()),
        ("other operations", outcome.operations.to_string()),
        ("duration", format!("{:.0} s", outcome.seconds)),
        ("seed", outcome.seed.map_or("none".into(), |seed| seed.to_string())),
    ];
    let tile = |(name, value): (&str, String)| {
        format!("<div class=\"tile\"><b>{value}</b><span>{name}</span></div>\n")
    };
    format!("<div class=\"tiles\">\n{}</div>\n", tiles.map(tile).concat())
}

fn by_fault(outcome: &Outcome) -> String {
    let mut table = String::from(
        "<table><tr><th>fault</th><th class=\"words\">class</th><th>runs</th><th>write gap p50, ms</th><th>p99</th>\
         <th>max</th><th>allowed</th><th>redundant after, ms at most</th></tr>\n",
    );
    for row in &outcome.by_fault {
        let (gap, bound) = (row.write_gap_ms, row.bound_ms);
        // Both are far below what a double counts exactly.
        let over = if gap.max > bound as f64 { " class=\"over\"" } else { "" };
        let _ = writeln!(
            table,
            "<tr{over}><td>{}</td><td class=\"words\">{:?}</td><td>{}</td><td>{:.0}</td><td>{:.0}</td><td>{:.0}</td>\
             <td>{bound}</td><td>{:.0}</td></tr>",
            row.fault, row.class, row.runs, gap.p50, gap.p99, gap.max, row.redundant_after_ms.max
        );
    }
    table + "</table>\n"
}

fn drills(outcome: &Outcome) -> String {
    let mut table = String::from(
        "<table><tr><th>at, s</th><th class=\"words\">what was done</th><th>write gap, ms</th><th>given back, s</th>\
         <th>redundant, s</th></tr>\n",
    );
    for drill in &outcome.drills {
        let since = |ms: f64| (ms - drill.struck_ms) / 1e3;
        let over = if drill.problems.is_empty() { "" } else { " class=\"over\"" };
        let _ = writeln!(
            table,
            "<tr{over}><td style=\"text-align:right\">{:.1}</td><td class=\"words\">{}</td><td>{:.0}</td><td>{:.1}</td>\
             <td>{:.1}</td></tr>",
            drill.struck_ms / 1e3,
            escape(&drill.fault.describe(&drill.victim)),
            drill.write_gap_ms,
            since(drill.mended_ms),
            since(drill.redundant_ms)
        );
    }
    table + "</table>\n"
}

/// Text that may stand in a document.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
