//! `ka cgroup`: a policy for all programs of a cgroup, those that run and those that will.
//!
//! The kernel itself gives it to the sockets, by two small programs that are attached to the cgroup ([`ka_reach::bpf`]).
//! They are kept by links, and those by paths in the bpf filesystem, a folder a cgroup: so they stay when ka has ended,
//! and go when the folder does, or the cgroup.

use std::collections::HashMap;
use std::fs::{self};
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use ka_policy::{Mode, Policy};
use serde::Serialize;

use crate::args::{self, CgroupCommand};
use crate::failure::{FOUND, Failure, Outcome};
use crate::json;
use crate::notify::Notify;
use crate::policy;
use crate::table::{self, Column, Output};
use crate::via;
use ka_reach::bpf::host;
use ka_reach::bpf::{self, Programs};
use ka_reach::cgroup::store::{check_pins, keep, kept, lock_pins, pins, release};
use ka_reach::cgroup::sweep::{Foreground, Swept, refusals, sweep};
use ka_reach::cgroup::walk::walk;
use ka_reach::cgroup::{Cgroup, above, held_above, refusal};
use ka_reach::sys::{self};
use ka_reach::text::{self, reason};

pub(crate) fn cgroup(args: &args::Cgroup) -> Outcome {
    match &args.command {
        CgroupCommand::Attach(args) => attach(args),
        CgroupCommand::Detach(args) => detach(args),
        CgroupCommand::Ls(args) => ls(args),
    }
}

fn failed(what: &str, why: impl std::fmt::Display) -> Failure {
    Failure::new(format_args!("cgroup {what}: {why}"))
}

/// What was done.
#[derive(Serialize)]
struct Attached {
    cgroup: String,
    policy: String,
    mode: &'static str,
    set: usize,
    unchanged: usize,
    failed: usize,
    /// Open sockets that the sweep left out, and why.
    left: Vec<String>,
}

fn attach(args: &args::CgroupAttach) -> Outcome {
    let failed = |why: String| failed("attach", why);
    let via::Chosen { policy, mode, skip } = via::choose("cgroup attach", &args.policy, args.mode)?;
    if !skip.is_empty() {
        let _ = writeln!(
            io::stderr(),
            "ka: cgroup attach: KA_SKIP is ignored here: the kernel sets the sockets of all programs"
        );
    }
    policy::check_on(&policy)?;
    if mode == Mode::Floor {
        return Err(failed(
            "KA_MODE=floor, in the environment or /etc/ka.conf: a cgroup has no such mode; use --mode force or --mode default"
                .to_owned(),
        ));
    }
    let policy = Policy::new(policy, mode);
    let cgroup = Cgroup::named(&args.cgroup).map_err(failed)?;
    if !args.whole_machine && cgroup.is_root() {
        return Err(failed(format!(
            "{} is the root cgroup, so the policy would apply to all programs of this machine; if you want that, add \
             --whole-machine",
            text::visible(cgroup.name().as_bytes())
        )));
    }
    let lacks_folder = || if args.foreground { None } else { host::lacks_bpf_folder() };
    if let Some(lack) = host::lacks(&host::FOR_CGROUPS).or_else(lacks_folder) {
        return Err(failed(lack));
    }
    let programs = Programs::load(policy)
        .map_err(|why| failed(format!("{why}; ka run and ka attach --follow need nothing of that")))?;
    let held = if args.foreground {
        Some(Held::new(&cgroup, &programs).map_err(failed)?)
    } else {
        keep(&cgroup, &programs).map_err(failed)?;
        None
    };
    if let Some(held) = &held {
        held.notify
            .send("READY=1\nSTATUS=The policy is in force for new sockets. Open sockets are being set.");
    }
    let held_above = held_above(&cgroup, policy);
    // What is open already. From here on nothing new comes without the policy.
    let is_alive = || {
        if let Some(held) = &held {
            held.notify.is_alive();
        }
    };
    let foreground = held.as_ref().map(|held| Foreground {
        termination: held.termination.as_fd(),
        interval: held.notify.interval(),
        is_alive: &is_alive,
    });
    let swept = sweep(&cgroup, policy, foreground.as_ref());
    let mut out = BufWriter::new(io::stdout().lock());
    let refused: Vec<_> = refusals(&swept, policy.mode).collect();
    let Swept { set, unchanged, refused: counts, left, overridden } = swept;
    for why in held_above.iter().chain(&overridden).chain(&left).chain(&refused) {
        let _ = writeln!(io::stderr(), "ka: cgroup attach: {why}");
    }
    let status = if left.is_empty() && refused.is_empty() { 0 } else { FOUND };
    let attached = Attached {
        cgroup: cgroup.name(),
        policy: ka_core::Text::typed(&policy.config).to_string(),
        mode: policy.mode.name(),
        set,
        unchanged,
        failed: counts.values().sum(),
        left,
    };
    if args.json {
        json::to_writer_pretty(&mut out, &attached)?;
        writeln!(out)?;
    } else {
        let Attached { cgroup, policy, mode, set, unchanged, failed, left } = &attached;
        let cgroup = text::visible(cgroup.as_bytes());
        let incomplete = if left.is_empty() { "" } else { "; not all were looked at" };
        writeln!(
            out,
            "{cgroup}: {policy}, mode {mode}; {} set, {unchanged} unchanged, {failed} failed{incomplete}",
            text::count(*set, "socket")
        )?;
    }
    out.flush()?;
    if let Some(held) = held {
        held.wait(&attached)?;
        return Ok(0);
    }
    Ok(status)
}

/// What is attached for as long as this process is there: the kernel ends a link that nobody holds any more.
struct Held {
    links: Vec<(&'static str, OwnedFd)>,
    termination: OwnedFd,
    notify: Notify,
}

impl Held {
    fn new(cgroup: &Cgroup, programs: &Programs) -> Result<Self, String> {
        // First, so that no signal ends it without a word.
        let termination = sys::termination().map_err(|error| reason(&error))?;
        sys::forget_children();
        let links = programs.link(cgroup.folder.as_fd())?;
        Ok(Self { links, termination, notify: Notify::from_environment() })
    }

    /// Waits for a signal, or until the cgroup is removed. When this returns, no policy is in force.
    ///
    /// The wait only needs bpf(2) queries about ka's own links, so ka drops all other capabilities first.
    fn wait(self, attached: &Attached) -> io::Result<()> {
        /// Nobody tells of a cgroup's end.
        const INTERVAL: Duration = Duration::from_secs(5);
        if let Err(error) = host::keep_only_bpf() {
            let _ = writeln!(io::stderr(), "ka: cgroup attach: cannot drop capabilities: {}", reason(&error));
        }
        let Attached { cgroup, policy, mode, .. } = attached;
        let visible = text::visible(cgroup.as_bytes());
        self.notify.send(&format!("STATUS={visible}: {policy}, mode {mode}"));
        let interval = self.notify.interval().map_or(INTERVAL, |interval| interval.min(INTERVAL));
        while sys::poll(&[self.termination.as_fd()], interval)? != [true] {
            let has_ended =
                |(_, link): &(_, OwnedFd)| bpf::sys::linked_cgroup(link.as_fd()).is_ok_and(|id| id == 0);
            if self.links.iter().all(has_ended) {
                return writeln!(io::stderr(), "ka: cgroup attach: {visible} has been removed");
            }
            self.notify.is_alive();
        }
        self.notify.send("STOPPING=1");
        // By themselves the links end a moment after this process.
        for (_, link) in &self.links {
            let _ = bpf::sys::detach(link.as_fd());
        }
        Ok(())
    }
}

fn detach(args: &args::CgroupDetach) -> Outcome {
    let failed = |why: String| failed("detach", why);
    if let Some(lack) = host::lacks(&host::FOR_CGROUPS).or_else(host::lacks_bpf_folder) {
        return Err(failed(lack));
    }
    check_pins().map_err(failed)?;
    let _lock = lock_pins().map_err(failed)?;
    let mut names = HashMap::new();
    let mut removed = Vec::new();
    let folders = match &args.cgroup {
        None => {
            let kept = kept();
            let skipped = Cgroup::named("/".as_ref()).and_then(|root| {
                let look = |cgroup: &Cgroup| {
                    if kept.iter().any(|(_, id)| *id == Some(cgroup.id)) {
                        names.insert(Some(cgroup.id), cgroup.name());
                    } else if remove_abandoned(cgroup) {
                        removed.push(cgroup.name());
                    }
                    Ok(())
                };
                walk(&root, look).map_err(|error| reason(&error))
            });
            for why in skipped.map_or_else(|why| vec![why], |skipped| skipped.lines().collect()) {
                let _ = writeln!(io::stderr(), "ka: cgroup detach: {why}");
            }
            kept
        }
        Some(name) => {
            let cgroup = Cgroup::named(name).map_err(failed)?;
            let folders = cgroup.kept();
            if folders.is_empty() {
                let others = bpf::attached(cgroup.folder.as_fd()).is_ok_and(|found| !found.is_empty());
                let why = if others {
                    "its policy is not kept here, but by ka run --via cgroup, until its program ends, by ka cgroup attach \
                     --foreground, until that does, or by another bpffs"
                } else {
                    "it has no policy of its own (ka cgroup ls shows which have)"
                };
                return Err(failed(format!("{}: {why}", cgroup.name())).with_status(FOUND));
            }
            names.insert(Some(cgroup.id), cgroup.name());
            folders.into_iter().map(|folder| (folder, Some(cgroup.id))).collect()
        }
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if folders.is_empty() && removed.is_empty() {
        writeln!(out, "no cgroup has a policy of ka cgroup attach")?;
    }
    for (folder, id) in folders {
        let policy = bpf::recorded(&folder.join(bpf::RECORD)).ok().flatten();
        release(&folder).map_err(|error| failed(format!("{}: {}", folder.display(), reason(&error))))?;
        let name = names.get(&id).map_or("a cgroup that has been removed", String::as_str);
        let name = text::visible(name.as_bytes());
        match policy {
            Some(Policy { config: policy, mode, .. }) => {
                writeln!(
                    out,
                    "{name}: {policy}, mode {}, detached; open sockets keep their settings",
                    mode.name()
                )?;
            }
            None => writeln!(out, "{name}: detached; open sockets keep their settings")?,
        }
    }
    for name in removed {
        writeln!(out, "{}: empty, removed", text::visible(name.as_bytes()))?;
    }
    out.flush()?;
    Ok(0)
}

/// Removes an empty cgroup of `ka run --via cgroup` that is left because ka was killed. The cgroup must have a policy
/// of ka, because anybody can give a cgroup such a name.
fn remove_abandoned(cgroup: &Cgroup) -> bool {
    cgroup.path.file_name().is_some_and(via::is_abandoned)
        && bpf::attached(cgroup.folder.as_fd()).is_ok_and(|found| !found.is_empty())
        && fs::remove_dir(&cgroup.path).is_ok()
}

/// A cgroup's policy, as JSON has it.
#[derive(Serialize)]
struct Row {
    /// `None` where it has been removed.
    cgroup: Option<String>,
    id: u64,
    policy: Option<String>,
    mode: Option<&'static str>,
    idle: Option<i32>,
    intvl: Option<i32>,
    cnt: Option<i32>,
    /// Where it is kept; `None` where the cgroup itself does.
    pinned: Option<PathBuf>,
    /// The cgroup is above the requested one, and its policy is in force there too.
    above: bool,
}

fn ls(args: &args::CgroupLs) -> Outcome {
    let failed = |why: String| failed("ls", why);
    let root = match &args.cgroup {
        Some(name) => Cgroup::named(name),
        None => Cgroup::named("/".as_ref()),
    };
    let root = root.map_err(failed)?;
    let mut rows = Vec::new();
    let row = |cgroup: &Cgroup, policy: Option<Policy<'static>>, pinned: Option<PathBuf>| Row {
        cgroup: Some(cgroup.name()),
        id: cgroup.id,
        policy: policy.map(|policy| ka_core::Text::typed(&policy.config).to_string()),
        mode: policy.map(|policy| policy.mode.name()),
        idle: policy.and_then(|policy| policy.config.idle()),
        intvl: policy.and_then(|policy| policy.config.intvl()),
        cnt: policy.and_then(|policy| policy.config.cnt()),
        pinned,
        above: false,
    };
    // Those of cgroups that are gone are one, 0: no two are told apart any more.
    let mut pinned: HashMap<_, _> =
        kept().into_iter().filter_map(|(folder, id)| Some((id?, folder))).collect();
    if args.cgroup.is_some() {
        for (path, policy) in above(&root).into_iter().rev() {
            if let Ok(cgroup) = Cgroup::open(&path) {
                let pinned = pinned.get(&cgroup.id).cloned();
                rows.push(Row { above: true, ..row(&cgroup, Some(policy), pinned) });
            }
        }
    }
    let walked = walk(&root, |cgroup| {
        for policy in bpf::attached(cgroup.folder.as_fd())? {
            rows.push(row(cgroup, Some(policy), pinned.get(&cgroup.id).cloned()));
        }
        Ok(())
    });
    let skipped = match walked {
        // Who may see what is kept sees that: CAP_BPF, and root's folder.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && pins().read_dir().is_ok() => {
            let why = refusal(&error);
            let _ = writeln!(
                io::stderr(),
                "ka: cgroup ls: only what ka cgroup attach keeps is listed: the rest {why}"
            );
            walk(&root, |cgroup| {
                if let Some(folder) = pinned.get(&cgroup.id) {
                    rows.push(row(cgroup, bpf::recorded(&folder.join(bpf::RECORD))?, Some(folder.clone())));
                }
                Ok(())
            })
            .map_err(|error| failed(refusal(&error)))?
        }
        other => other.map_err(|error| failed(refusal(&error)))?,
    };
    for why in skipped.lines() {
        let _ = writeln!(io::stderr(), "ka: cgroup ls: {why}");
    }
    if let Some(folder) = pinned.remove(&0).filter(|_| args.cgroup.is_none()) {
        rows.push(Row {
            cgroup: None,
            id: 0,
            policy: None,
            mode: None,
            idle: None,
            intvl: None,
            cnt: None,
            pinned: Some(folder),
            above: false,
        });
    }
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        json::to_writer_pretty(&mut out, &rows)?;
        writeln!(out)?;
    } else {
        write_table(&mut out, &rows)?;
    }
    out.flush()?;
    Ok(if skipped.is_empty() { 0 } else { FOUND })
}

fn write_table(out: &mut impl Write, rows: &[Row]) -> io::Result<()> {
    const COLUMNS: [Column; 4] = [
        Column::elastic("CGROUP", 10),
        Column::left("MODE"),
        Column::left("POLICY"),
        Column::elastic("KEPT", 10),
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
                .map_or("(removed)".into(), |name| text::visible(name.as_bytes()).into_owned());
            let cgroup = if row.above { format!("{cgroup} (above)") } else { cgroup };
            let kept = row.pinned.as_ref().map_or("until it ends".into(), |path| {
                text::visible(path.as_os_str().as_encoded_bytes()).into_owned()
            });
            vec![
                cgroup.into(),
                row.mode.unwrap_or("-").into(),
                row.policy.clone().unwrap_or_else(|| "-".to_owned()).into(),
                kept.into(),
            ]
        })
        .collect();
    table::write(out, Output::standard(), &COLUMNS, &cells)
}
