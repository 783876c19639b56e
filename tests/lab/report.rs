//! The table that people read.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::story::Record;
use crate::timeline;

/// Prints the table, and writes report.md with a picture of each case.
pub fn write(folder: &Path, records: &mut [Record]) {
    records.sort_by(|one, other| one.name.cmp(&other.name));
    let rows: Vec<[String; 6]> = records.iter().map(row).collect();
    println!("{}", table(&rows));
    let pictures = folder.join("pictures");
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(&pictures).unwrap();
    let mut report = String::from("# What the lab saw\n\n");
    let lived = records.iter().filter(|record| record.failure.is_none()).count();
    let _ = writeln!(
        report,
        "{lived} of {} cases went as they should, on Linux {}. Probes are those of the client, and their answers, as \
         tcpdump saw them at the client's end.\n",
        records.len(),
        fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim()
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
    let probes: Vec<String> = story
        .flows
        .iter()
        .map(|shown| format!("{} sent, {} answered", shown.flow.probes().len(), shown.flow.answers().len()))
        .collect();
    let mut probes_once = probes.clone();
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

/// Columns as wide as what is in them.
fn table(rows: &[[String; 6]]) -> String {
    let heads = ["case", "what should happen", "what happened", "seconds", "probes", ""].map(str::to_owned);
    let all = || std::iter::once(&heads).chain(rows);
    let widths: [usize; 6] =
        std::array::from_fn(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in all() {
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}
