//! The report, docs/matrix.md.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use ka_test::child::stdout;

use crate::Row;
use crate::cell::CellResult;
use crate::kernel::End;
use crate::way::{POLICY, Way};

pub fn write(rows: &[Row]) -> String {
    let mut text = format!(
        "# Programs in each way

`make matrix` ran {} programs with each of ka's ways to reach sockets, and wrote this page.
It used {}.
`make matrix ONLY=nginx` runs only nginx.

Each cell of the table is one test. The test starts a server and its client in new network, PID and mount namespaces.
The policy is {POLICY} (idle, interval and count). `ok` means:

- Both ends of every established connection have the policy. ss(8) shows a running keepalive timer. The test duplicates
  the descriptor of the process and calls getsockopt(2) on it: keepalive is on, and idle, interval and count have the
  values of the policy. Two modes allow other values. In mode floor, a value may be stricter than the policy. In mode
  default, an end may have the values that its program sets without ka. `own` means that both ends have these.
- The client prints the same text as without ka, and exits with the same status. After SIGTERM, the server ends as it
  does without ka.

The column `none` shows the values without ka, first of the server and then of the client. The values are idle, interval
and count, or `off`. In the column `attach`, `ka attach --all` sets the sockets of programs that are already connected.
The column `cgroup` uses `ka cgroup attach`, and the column `seccomp` uses `ka run --via seccomp`. Both use mode force.

",
        rows.len(),
        environment()
    );
    let heads: Vec<&str> = Way::ALL.into_iter().map(Way::name).collect();
    let _ = writeln!(text, "| program | {} |\n|{}", heads.join(" | "), "---|".repeat(heads.len() + 1));
    let mut notes: Vec<&str> = vec![];
    for row in rows {
        let cells: Vec<String> = Way::ALL
            .into_iter()
            .zip(&row.cells)
            .map(|(way, seen)| cell(row, way, seen, &mut notes))
            .collect();
        let _ = writeln!(text, "| [{0}](#{0}) | {1} |", row.program.name, cells.join(" | "));
    }
    text.push('\n');
    for (number, note) in notes.iter().enumerate() {
        let _ = writeln!(text, "{}. {note}.", number + 1);
    }
    text += "\n## The programs\n\n| | version | description |\n|---|---|---|\n";
    for row in rows {
        let version = row.cells.first().map_or("", |seen| number(&seen.version));
        let name = row.program.name;
        let _ = writeln!(text, "| <a id=\"{name}\"></a>{name} | {} | {} |", plain(version), row.program.what);
    }
    let said: Vec<String> = rows.iter().flat_map(remarks).collect();
    if !said.is_empty() {
        let _ = writeln!(text, "\n## Messages of ka during the tests\n\n{}", said.join("\n"));
    }
    text
}

fn environment() -> String {
    let date = stdout(Command::new("date").args(["-u", "+%Y-%m-%d"]));
    let debian = fs::read_to_string("/etc/debian_version").unwrap_or_default();
    format!(
        "ka {} on Debian {}, Linux {}, {}, {}",
        env!("CARGO_PKG_VERSION"),
        debian.trim(),
        ka_test::kernel::version(),
        std::env::consts::ARCH,
        date.trim()
    )
}

fn cell(row: &Row, way: Way, seen: &CellResult, notes: &mut Vec<&'static str>) -> String {
    if row.wrong.iter().any(|(wrong, _)| *wrong == way) {
        return "**FAILED**".to_owned();
    }
    if seen.untried.is_some() {
        return "not tried".to_owned();
    }
    if way == Way::None {
        let of = |server: bool| {
            let ends = seen.ends.iter().filter(|end| end.has_port(row.program.port));
            let own = ends.filter(|end| end.is_server_of(row.program.port) == server).map(own);
            own.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" ")
        };
        return format!("{} / {}", of(true), of(false));
    }
    if let Some((_, why)) = row.program.except.iter().find(|(ways, _)| ways.contains(&way)) {
        let known = notes.iter().position(|note| note == why);
        let number = known.unwrap_or_else(|| {
            notes.push(why);
            notes.len() - 1
        });
        return format!("no ({})", number + 1);
    }
    if way == Way::Default && crate::lacks_policy_everywhere(seen) {
        "ok, own".to_owned()
    } else {
        "ok".to_owned()
    }
}

fn own(end: &End) -> String {
    let [idle, intvl, cnt] = end.values;
    if end.on { format!("{idle},{intvl},{cnt}") } else { "off".to_owned() }
}

/// Returns the version in a program's output: the first word of digits and a dot.
fn number(said: &str) -> &str {
    let end = |character: char| !(character.is_ascii_alphanumeric() || ".+~-".contains(character));
    let words =
        said.split(end).map(|word| word.trim_start_matches(|character: char| !character.is_ascii_digit()));
    words.into_iter().find(|word| word.contains('.')).unwrap_or(said)
}

/// Returns the messages of ka about a program, each once.
fn remarks(row: &Row) -> Vec<String> {
    let mut lines = vec![];
    for (way, seen) in Way::ALL.into_iter().zip(&row.cells) {
        for said in seen.said.iter().collect::<BTreeSet<_>>() {
            lines.push(format!("- {}, {}: {}", row.program.name, way.name(), plain(said)));
        }
    }
    lines
}

/// Escapes characters that have a meaning in a Markdown table.
fn plain(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}
