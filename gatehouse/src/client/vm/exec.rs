//! `gatehouse vm exec`: commands in VMs.

use super::TIMED_OUT;
use crate::client::{Api, ClientError, print_json};
use clap::Args;
use model::api::LINUX_USER_HEADER;
use model::api::exec::{Exec, ExecResult};
use model::id::VmId;
use std::io::{self, Write};

/// An exit status for a command of which none is known.
const NO_STATUS: u8 = 255;

/// A command to run.
#[derive(Args, Clone, Debug)]
pub struct ExecArgs {
    /// The VM
    vm: VmId,
    /// The Linux user; root when absent
    #[arg(long, short)]
    user: Option<String>,
    /// Kill the command after so many seconds
    #[arg(long, short, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Print JSON in place of the command's output
    #[arg(long)]
    json: bool,
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl ExecArgs {
    /// Does it; returns the command's exit status.
    pub(super) async fn run(self, api: &Api) -> Result<u8, ClientError> {
        let body = Exec {
            command: shell_text(&self.command),
            terminal: None,
            timeout_ms: self.timeout.map(|seconds| seconds.saturating_mul(1000)),
        };
        let header = self.user.as_deref().map(|user| (LINUX_USER_HEADER, user));
        let path = ["v1", "vms", self.vm.as_str(), "exec-await"];
        let result = match api.post_with::<_, ExecResult>(&path, &body, header).await {
            Ok(result) => result,
            Err(ClientError::Refused { code, body, .. }) if code == "EXEC_TIMED_OUT" && !self.json => {
                let text = |field| body.fields.get(field).and_then(|text| text.as_str()).map(str::to_owned);
                pass_through(text("stdout"), text("stderr"))?;
                eprintln!("gatehouse: the time was over, the command was killed");
                return Ok(TIMED_OUT);
            }
            Err(error) => return Err(error),
        };
        let status = result.status_code.and_then(|code| u8::try_from(code).ok()).unwrap_or(NO_STATUS);
        if self.json {
            print_json(&result)?;
        } else {
            let truncated = result.truncated;
            pass_through(result.stdout, result.stderr)?;
            if truncated {
                eprintln!("gatehouse: the output was too long, some of it is lost");
            }
        }
        Ok(status)
    }
}

fn pass_through(stdout: Option<String>, stderr: Option<String>) -> Result<(), ClientError> {
    io::stdout().write_all(stdout.unwrap_or_default().as_bytes()).map_err(ClientError::Output)?;
    io::stderr().write_all(stderr.unwrap_or_default().as_bytes()).map_err(ClientError::Output)?;
    io::stdout().flush().map_err(ClientError::Output)
}

/// One argument is the shell's text; several are words that the shell must leave as they are.
fn shell_text(words: &[String]) -> String {
    if let [line] = words {
        return line.clone();
    }
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

fn quote(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn the_shell_sees_the_words_that_were_given(words in prop::collection::vec("[^\0]{0,12}", 2..5)) {
            let mut all = vec!["printf".to_owned(), r"%s\n\n".to_owned()];
            all.extend(words.iter().cloned());
            let output = Command::new("sh").arg("-c").arg(shell_text(&all)).output().expect("sh");
            let wanted: String = words.iter().map(|word| format!("{word}\n\n")).collect();
            prop_assert_eq!(String::from_utf8_lossy(&output.stdout), wanted);
        }
    }
}
