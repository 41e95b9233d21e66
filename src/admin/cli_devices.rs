//! The verbs of `rma` about the devices that this host owns.

use super::cli::{Cli, ask};
use super::cli_error::CliError;
use super::device_text;
use super::protocol::{Answer, PolicyChange, Question};
use super::text::Style;

impl Cli {
    pub(super) fn exports(&self, style: Style) -> Result<bool, CliError> {
        let question = Question::Exports;
        match ask(&self.socket("rmad.sock"), &question)? {
            Answer::Exports { exports } => {
                self.print(&serde_json::json!({ "exports": exports }), || {
                    device_text::exports(&exports, style)
                })?;
                Ok(true)
            }
            Answer::Error(error) => Err(CliError::Refused(error.message)),
            _ => Err(CliError::unexpected()),
        }
    }

    pub(super) fn policy(
        &self,
        device: &str,
        change: Option<PolicyChange>,
    ) -> Result<bool, CliError> {
        let device = device.to_owned();
        let question = Question::Policy { device, change };
        match ask(&self.socket("rmad.sock"), &question)? {
            Answer::Policy(info) => {
                self.print(&info, || device_text::policy(&info))?;
                Ok(true)
            }
            Answer::Error(error) => Err(CliError::Refused(error.message)),
            _ => Err(CliError::unexpected()),
        }
    }

    pub(super) fn statistics(&self, style: Style) -> Result<bool, CliError> {
        let question = Question::Statistics;
        match ask(&self.socket("rmad.sock"), &question)? {
            Answer::Statistics {
                devices,
                frames,
                paths,
            } => {
                let json =
                    serde_json::json!({ "devices": devices, "frames": frames, "paths": paths });
                let text = || super::stats_text::text(style, &devices, &frames, &paths);
                self.print(&json, text)?;
                Ok(true)
            }
            Answer::Error(error) => Err(CliError::Refused(error.message)),
            _ => Err(CliError::unexpected()),
        }
    }

    pub(super) fn udev_rules(&self) -> Result<bool, CliError> {
        match ask(&self.socket("rmad.sock"), &Question::UdevRules)? {
            Answer::UdevRules { rules } => {
                self.print(&serde_json::json!({ "rules": rules }), || rules.clone())?;
                Ok(true)
            }
            Answer::Error(error) => Err(CliError::Refused(error.message)),
            _ => Err(CliError::unexpected()),
        }
    }

    pub(super) fn udev_test(&self, device: &str, style: Style) -> Result<bool, CliError> {
        let device = device.to_owned();
        let question = Question::UdevTest { device };
        match ask(&self.socket("rmad.sock"), &question)? {
            Answer::UdevTest(test) => {
                self.print(&test, || device_text::udev_test(&test, style))?;
                Ok(test.links.iter().all(|link| link.is_right))
            }
            Answer::Error(error) => Err(CliError::Refused(error.message)),
            _ => Err(CliError::unexpected()),
        }
    }
}
