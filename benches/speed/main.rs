//! The goals of speed and size, measured: `cargo bench --bench speed [-- [--strict] [--rounds N] [NAME...]]`.
//!
//! Each figure of time is a ratio to a bare program that makes the same system calls in the same run, so that it says the
//! same on a fast machine and on a busy one. A NAME picks the benchmarks whose names begin with it. With `--strict` the
//! exit code is 1 if a goal is missed.

mod goals;
mod lives;
mod manager;
mod pairs;
mod process;

use anyhow::{Context, Result, bail};
use goals::Bench;
use pairs::Row;
use std::process::ExitCode;

type Measure = fn(&Bench) -> Result<Vec<Row>>;

/// All of them, by name.
const ALL: &[(&str, Measure)] = &[
    ("start500", goals::start500),
    ("respawn", goals::respawn),
    ("ondemand", goals::ondemand),
    ("boot1000", goals::boot1000),
    ("boot1", goals::boot1),
    ("linear", goals::linear),
    ("idle", goals::idle),
    ("memory", goals::memory),
    ("size", goals::size),
    ("stall", lives::stall),
    ("upgrade1000", lives::upgrade1000),
    ("state", lives::state),
];

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("speed: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitCode> {
    let (mut strict, mut rounds, mut names) = (false, None, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // What cargo gives to every benchmark.
            "--bench" => {}
            "--strict" => strict = true,
            "--rounds" => {
                let count = args.next().context("`--rounds` needs a number")?;
                rounds = Some(count.parse().context("`--rounds` needs a number")?);
            }
            option if option.starts_with('-') => bail!("unknown option `{option}`"),
            _ => names.push(arg),
        }
    }
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|want| name == want);
    if let Some(name) = names
        .iter()
        .find(|want| !ALL.iter().any(|(name, _)| name == want))
    {
        let known: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
        bail!("no benchmark `{name}`; there are {}", known.join(", "));
    }

    let dir = tempfile::Builder::new()
        .prefix("tentpole-bench-")
        .tempdir()?;
    let bench = Bench {
        bare: process::compile_bare(dir.path())?,
        rounds,
    };
    println!("{}", pairs::header());
    let mut over = false;
    for (name, measure) in ALL.iter().filter(|(name, _)| is_wanted(name)) {
        let rows = measure(&bench).with_context(|| format!("benchmark `{name}`"))?;
        for row in rows {
            over |= row.is_over();
            println!("{row}");
        }
    }
    Ok(ExitCode::from(u8::from(strict && over)))
}
