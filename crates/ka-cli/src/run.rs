//! `ka run`: becomes a program whose sockets all have the policy.

use std::io::{self, Write as _};

use ka_core::Config;

use crate::args;
use crate::failure::{Failure, OUR_OWN, Outcome};
use crate::program::Program;
use crate::via::{self, Launch, Reach};

pub(crate) fn run(args: &args::Run) -> Outcome {
    let own = |failure: Failure| failure.with_status(OUR_OWN);
    let said = if args.policy.is_named() { Some(said(args).map_err(own)?) } else { None };
    let name = args.program.first().map(AsRef::as_ref).unwrap_or_default();
    let program = Program::find(name).map_err(|failure| {
        let message = format!("run: {}", failure.message);
        Failure { message, ..failure }
    })?;
    let launch = Launch {
        program: &program,
        arguments: &args.program,
        said,
        is_whole: args.policy.whole.is_some(),
        mode: args.mode,
        verbose: args.verbose,
        best_effort: args.best_effort,
    };
    // The first way that reaches it; where none does, why the first that was asked for does not.
    let mut obstacle = None;
    for way in via::asked(args.via) {
        match way.reach(&launch) {
            Reach::Yes(_) => match way.start(&launch)? {},
            Reach::No { why, instead } => _ = obstacle.get_or_insert((way, why, instead)),
        }
    }
    let Some((way, why, instead)) = obstacle else {
        return Err(own(Failure::new("run: there is no such way")));
    };
    let message = format!("run: {why}; use {instead}");
    if !args.best_effort {
        return Err(own(Failure::new(message)));
    }
    let _ = writeln!(io::stderr(), "ka: {message}");
    // What the program starts in its turn may be reached.
    match way.start(&launch)? {}
}

/// What the flags say, which must be to turn keepalive on.
fn said(args: &args::Run) -> Result<Config, Failure> {
    args.policy.config_on()?;
    args.policy.said()
}
