//! `ka run --via cgroup`: runs a program in a new cgroup with the policy. The policy also reaches the program's
//! children, and ka loads nothing into the program.
//!
//! ka attaches the BPF programs to the cgroup without a link, so they stay until the cgroup is removed. A process of ka
//! in its own session waits until the cgroup is empty, and removes it. If that process is killed, the empty cgroup is
//! left over. The next `ka run --via cgroup` in the same parent cgroup removes it.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ka_policy::{Mode, Policy, Variables};

use super::{Obstacle, Reachability, StartRequest, Way};
use crate::failure::{Failure, RUN_FAILED, warn};
use ka_reach::bpf::{self, Programs};
use ka_reach::escape;
use ka_reach::seccomp::set_inherited_sockets;
use ka_reach::{Error, cgroup, fork, wait};

pub(super) struct CgroupWay;

/// The prefix of the names of the cgroups. The PID of the first process follows.
const NAME: &str = "ka-run-";

impl Way for CgroupWay {
    fn name(&self) -> &'static str {
        "cgroup"
    }

    /// `auto` does not select this way, because it moves the program to a new cgroup. Tools that account for the
    /// program's memory may look at the old one.
    fn is_automatic(&self) -> bool {
        false
    }

    fn check(&self, request: &StartRequest<'_>) -> Reachability {
        const INSTEAD: &str = "ka run, without --via; or ka attach --follow PID, once it runs";
        let no = |why: &str, instead| Reachability::NotReached(Obstacle::new(why, instead));
        if let Some(exemption) = request.exemption() {
            return Reachability::NotReached(exemption);
        }
        let sources = request.sources();
        let variables = sources.variables();
        if variables.mode == Mode::Floor {
            return no("mode floor is not available in cgroups, only force and default", "--mode force");
        }
        if !variables.rules.is_empty() {
            return no(
                "KA_RULES is not available in cgroups: a cgroup has one policy",
                "KA_RULES= ka run --via cgroup",
            );
        }
        let own = match cgroup::folder_of("self") {
            Ok(own) => own,
            Err(error) => return no(&error.to_string(), INSTEAD),
        };
        if !cgroup::is_cgroup_path(&own) {
            return no(
                &format!("{}: the cgroup of this process does not exist there", own.display()),
                INSTEAD,
            );
        }
        match bpf::check_cgroups() {
            Err(error) => no(&error.to_string(), INSTEAD),
            Ok(()) => Reachability::Reached(format!(
                "a new cgroup below {}, in which the kernel sets every TCP socket",
                own.display()
            )),
        }
    }

    fn start(&self, request: &StartRequest<'_>) -> Result<Infallible, Failure> {
        let sources = request.sources();
        let Variables { config, mode, .. } = sources.variables();
        let policy = Policy::new(config, mode);
        sources.warn_of_mistakes(None);
        sources.warn_of_log(self.name());
        match enter(policy) {
            Ok(cgroup) => {
                if request.verbose {
                    let mode = mode.name();
                    let cgroup = escape::visible(cgroup.as_os_str().as_encoded_bytes());
                    warn(format_args!("via cgroup: {cgroup}, {config}, mode {mode}"));
                }
                set_inherited_sockets(policy);
            }
            Err(error) if request.best_effort => {
                warn(format_args!("run: {error}; running it WITHOUT keepalive"));
            }
            Err(error) => return Err(Failure::new(format_args!("run: {error}")).with_status(RUN_FAILED)),
        }
        Err(request.execute(&sources.environment))
    }
}

/// Creates a cgroup with the policy, and moves this process into it. Returns the path of the cgroup.
fn enter(policy: Policy<'static>) -> ka_reach::Result<PathBuf> {
    let programs = Programs::load(policy)?;
    let own = cgroup::folder_of("self")?;
    remove_empty(&own);
    let path = own.join(format!("{NAME}{}", std::process::id()));
    fs::create_dir(&path).map_err(|error| Error::io(path.display(), error))?;
    let entered = (|| {
        let folder = File::open(&path).map_err(|error| Error::io(path.display(), error))?;
        programs.attach(&folder)?;
        remove_later(&path).map_err(|error| {
            Error::io(format_args!("cannot start the process that removes {} later", path.display()), error)
        })?;
        let members = path.join("cgroup.procs");
        fs::write(&members, "0").map_err(|error| Error::io(members.display(), error))
    })();
    if entered.is_err() {
        let _ = fs::remove_dir(&path);
    }
    entered.map(|()| path)
}

/// Removes the empty cgroups of earlier runs whose waiting process was killed.
fn remove_empty(own: &Path) {
    for entry in fs::read_dir(own).into_iter().flatten().flatten() {
        // A cgroup that still has processes cannot be removed.
        if is_abandoned(&entry.file_name()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Returns whether `ka run --via cgroup` may have created the cgroup with this name for a process that has ended. A
/// process that exists may be about to enter its cgroup.
pub(crate) fn is_abandoned(name: &OsStr) -> bool {
    let pid = name.to_str().and_then(|name| name.strip_prefix(NAME)?.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// Starts a process that removes the cgroup when its last process has ended.
fn remove_later(path: &Path) -> io::Result<()> {
    // The kernel closes the write end when this process executes the program or ends. Before that, the cgroup may be
    // empty because this process has not entered it yet.
    let (reader, writer) = io::pipe()?;
    fork::start_detached(&[reader.as_raw_fd()], || {
        let _ = reader.try_clone()?.read(&mut [0]);
        let mut events = File::open(path.join("cgroup.events"))?;
        loop {
            let mut text = String::new();
            events.rewind()?;
            events.read_to_string(&mut text)?;
            if text.lines().any(|line| line == "populated 0") {
                return fs::remove_dir(path);
            }
            // If another process removes the cgroup, the file does not change, but reading it fails.
            wait::await_change(events.as_fd(), Duration::from_secs(5))?;
        }
    })?;
    std::mem::forget(writer);
    Ok(())
}
