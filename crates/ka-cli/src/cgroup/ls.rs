//! `ka cgroup ls`: lists the cgroups that have a policy.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use ka_policy::Policy;
use ka_reach::cgroup::{Cgroup, PinOwner, Pins, query_error, walk};
use ka_reach::escape;
use serde::Serialize;

use super::warn;
use crate::args;
use crate::failure::{CommandResult, FOUND, Failure};
use crate::json;
use crate::table::{self, Column, Layout};

/// A cgroup's policy, as `--json` prints it.
#[derive(Default, Serialize)]
struct CgroupRow {
    /// `None` if the cgroup has been removed.
    cgroup: Option<String>,
    id: u64,
    policy: Option<String>,
    mode: Option<&'static str>,
    idle: Option<i32>,
    intvl: Option<i32>,
    cnt: Option<i32>,
    /// The directory of the pins. `None` if the policy is not pinned.
    pinned: Option<PathBuf>,
    /// `true` if the cgroup is above the requested one. Its policy is also in force in the requested cgroup.
    above: bool,
}

impl CgroupRow {
    fn new(cgroup: &Cgroup, policy: Option<Policy<'static>>, pinned: Option<&Pins>) -> Self {
        Self {
            cgroup: Some(cgroup.name()),
            id: cgroup.id,
            policy: policy.map(|policy| ka_core::Text::typed(&policy.config).to_string()),
            mode: policy.map(|policy| policy.mode.name()),
            idle: policy.and_then(|policy| policy.config.idle()),
            intvl: policy.and_then(|policy| policy.config.intvl()),
            cnt: policy.and_then(|policy| policy.config.cnt()),
            pinned: pinned.map(|pins| pins.folder.clone()),
            above: false,
        }
    }
}

pub(super) fn ls(args: &args::CgroupLsArgs) -> CommandResult {
    let query_failed = |error: io::Error| super::failed("ls", query_error(error));
    let root = Cgroup::named(args.cgroup.as_deref().unwrap_or("/".as_ref()))
        .map_err(|error| super::failed("ls", error))?;
    let mut rows = Vec::new();
    // Removed cgroups have no names, so all of them share one row.
    let (mut pins, mut removed) = (HashMap::new(), None);
    for one in Pins::all() {
        match one.owner {
            PinOwner::Cgroup(id) => drop(pins.insert(id, one)),
            PinOwner::Removed => removed = Some(one.folder),
            PinOwner::Unknown => {}
        }
    }
    if args.cgroup.is_some() {
        for (path, policy) in root.policies_above().into_iter().rev() {
            if let Ok(cgroup) = Cgroup::open(&path) {
                rows.push(CgroupRow {
                    above: true,
                    ..CgroupRow::new(&cgroup, Some(policy), pins.get(&cgroup.id))
                });
            }
        }
    }
    let walked = walk(&root, |cgroup| {
        for policy in cgroup.policies()? {
            rows.push(CgroupRow::new(cgroup, Some(policy), pins.get(&cgroup.id)));
        }
        Ok(())
    });
    let skipped = match walked {
        // To read the pins, ka needs only CAP_BPF and access to their directory.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && Pins::can_list() => {
            let why = query_error(error);
            warn(
                "ls",
                format_args!(
                    "only the pinned policies of ka cgroup attach are listed: to list the others, ka {why}"
                ),
            );
            let walked = walk(&root, |cgroup| {
                if let Some(pins) = pins.get(&cgroup.id) {
                    rows.push(CgroupRow::new(cgroup, pins.policy()?, Some(pins)));
                }
                Ok(())
            });
            walked.map_err(query_failed)?
        }
        other => other.map_err(query_failed)?,
    };
    let is_whole = skipped.is_empty();
    for skip in skipped {
        warn("ls", skip);
    }
    if args.cgroup.is_none() && removed.is_some() {
        rows.push(CgroupRow { pinned: removed, ..CgroupRow::default() });
    }
    print(&rows, args.json)?;
    Ok(if is_whole { 0 } else { FOUND })
}

fn print(rows: &[CgroupRow], is_json: bool) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    if is_json {
        json::to_writer_pretty(&mut out, &rows)?;
        writeln!(out)?;
    } else {
        write_table(&mut out, rows)?;
    }
    Ok(out.flush()?)
}

fn write_table(out: &mut impl Write, rows: &[CgroupRow]) -> io::Result<()> {
    const COLUMNS: [Column; 4] = [
        Column::elastic("CGROUP", 10),
        Column::left("MODE"),
        Column::left("POLICY"),
        Column::elastic("PINNED", 10),
    ];
    if rows.is_empty() {
        return writeln!(out, "no cgroup has a policy");
    }
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let cgroup = row
                .cgroup
                .as_ref()
                .map_or("(removed)".into(), |name| escape::visible(name.as_bytes()).into_owned());
            let cgroup = if row.above { format!("{cgroup} (above)") } else { cgroup };
            let pinned = row.pinned.as_ref().map_or("no, ends with ka".into(), |path| {
                escape::visible(path.as_os_str().as_encoded_bytes()).into_owned()
            });
            vec![
                cgroup.into(),
                row.mode.unwrap_or("-").into(),
                row.policy.clone().unwrap_or_else(|| "-".to_owned()).into(),
                pinned.into(),
            ]
        })
        .collect();
    table::write(out, Layout::standard(), &COLUMNS, &cells)
}
