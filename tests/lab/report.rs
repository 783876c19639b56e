//! The table and the report.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::story::{Record, Shown};
use crate::timeline;

/// Prints the table, and writes report.md with a picture of each case.
pub fn write(folder: &Path, records: &mut [Record]) {
    records.sort_by(|one, other| one.name.cmp(&other.name));
    let rows: Vec<[String; 6]> = records.iter().map(row).collect();
    println!("{}", table(&rows));
    let pictures = folder.join("pictures");
    // Remove the pictures of an earlier run, and nothing else in the folder.
    let _ = fs::remove_dir_all(&pictures);
    fs::create_dir_all(&pictures).unwrap();
    let mut report = String::from("# Results of the lab\n\n");
    let lived = records.iter().filter(|record| record.failure.is_none()).count();
    let _ = writeln!(
        report,
        "{lived} of {} cases went as they should, on Linux {}. Probes are those of the client, and their answers, as \
         tcpdump saw them at the client's end.\n",
        records.len(),
        ka_test::kernel::version()
    );
    report.push_str(
        "| case | what should happen | what happened | seconds | probes | |\n|---|---|---|---|---|---|\n",
    );
    for [case, should, happened, seconds, probes, verdict] in &rows {
        let _ = writeln!(
            report,
            "| [{case}](#{case}) | {should} | {happened} | {seconds} | {probes} | {verdict} |"
        );
    }
    for record in records.iter() {
        let _ = writeln!(report, "\n## <a id=\"{0}\"></a>{0}\n\n{1}.\n", record.name, record.should);
        if let Some(failure) = &record.failure {
            let _ = writeln!(report, "**Failed:** {failure}\n");
        }
        if let Some(picture) = timeline::draw(&record.story) {
            let file = format!("{}.svg", record.name.replace("::", "-"));
            fs::write(pictures.join(&file), picture).unwrap();
            let _ = writeln!(report, "![{}](pictures/{file})", record.name);
        }
    }
    fs::write(folder.join("report.md"), report).unwrap();
    println!("{}", folder.join("report.md").display());
}

fn row(record: &Record) -> [String; 6] {
    let story = &record.story;
    let seconds: Vec<String> = story.seconds.iter().map(|seconds| format!("{seconds:.1}")).collect();
    let counts = |shown: &Shown| {
        let Shown { flow, .. } = shown;
        match flow.server_probes().len() {
            0 => format!("{} sent, {} answered", flow.probes().len(), flow.answers().len()),
            server => format!(
                "{} sent, {} answered, {server} of the server",
                flow.probes().len(),
                flow.answers().len()
            ),
        }
    };
    let mut probes_once: Vec<String> = story.flows.iter().map(counts).collect();
    probes_once.extend(story.rates.iter().map(|(label, times)| format!("{label}: {}", times.len())));
    probes_once.dedup();
    let mut happened = story.happened.clone();
    happened.dedup();
    [
        record.name.clone(),
        record.should.clone(),
        happened.join("; "),
        seconds.join(", "),
        probes_once.join("; "),
        if record.failure.is_none() { "ok".to_owned() } else { "FAILED".to_owned() },
    ]
}

/// Formats columns that fit into a terminal. Longer text continues on the next line.
fn table(rows: &[[String; 6]]) -> String {
    const MOST: [usize; 6] = [44, 34, 40, 10, 20, 6];
    let heads = ["case", "what should happen", "what happened", "seconds", "probes", ""].map(str::to_owned);
    let mut text = String::new();
    for row in std::iter::once(&heads).chain(rows) {
        let cells: [Vec<String>; 6] = std::array::from_fn(|column| wrapped(&row[column], MOST[column]));
        for line in 0..cells.iter().map(Vec::len).max().unwrap_or(0) {
            for (cell, width) in cells.iter().zip(MOST) {
                let _ = write!(text, "{:width$}  ", cell.get(line).map_or("", String::as_str));
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
    }
    text
}

/// Breaks a text into lines of at most `most` characters, if possible after a blank, a comma or an underscore.
fn wrapped(text: &str, most: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_inclusive([' ', ',', '_', ':']) {
        let last = lines.last_mut().unwrap();
        if last.is_empty() || last.chars().count() + word.trim_end().chars().count() <= most {
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}
