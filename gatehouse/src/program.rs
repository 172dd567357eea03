//! The command line as a program: words in, lines and an exit status out.

use crate::cli::Cli;
use crate::client::vm::ASKPASS_VARIABLE;
use crate::client::{ClientError, print_line};
use clap::Parser;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Does what this process' words ask. The exit status is 1 when that came to nothing, 2 when the words make no sense.
#[must_use]
pub fn run() -> ExitCode {
    if let Some(status) = answered_ssh() {
        return status;
    }
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let color = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(color)
        .with_target(false)
        .init();
    match cli.run() {
        Ok(status) => ExitCode::from(status),
        // Whoever read the output has enough of it, as `head` does.
        Err(error) if is_broken_pipe(&error) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("Error: {}", text(&error));
            ExitCode::FAILURE
        }
    }
}

/// When ssh asks for a login's token, as `vm ssh` told it to, with the question as the only word: prints it.
fn answered_ssh() -> Option<ExitCode> {
    let token = std::env::var(ASKPASS_VARIABLE).ok()?;
    (std::env::args_os().len() == 2).then(|| match print_line(&token) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    let output = matches!(error.downcast_ref(), Some(ClientError::Output(_)));
    output && error.chain().filter_map(|cause| cause.downcast_ref()).any(broken)
}

/// The error and its causes, save those that it already tells.
fn text(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_cause_is_told_once() {
        let cause = || io::Error::new(io::ErrorKind::BrokenPipe, "the pipe is gone");
        let told = anyhow::Error::from(ClientError::Output(cause()));
        assert_eq!(text(&told).matches("the pipe is gone").count(), 1);
        let told = Err::<(), _>(cause()).context("no luck").expect_err("an error");
        assert_eq!(text(&told), "no luck: the pipe is gone");
    }

    #[test]
    fn only_a_reader_that_went_away_is_passed_over() {
        let broken = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&ClientError::Output(broken).into()));
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert!(!is_broken_pipe(&ClientError::Output(full).into()));
        assert!(!is_broken_pipe(&io::Error::from(io::ErrorKind::BrokenPipe).into()));
    }
}
