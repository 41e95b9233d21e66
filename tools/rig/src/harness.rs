//! A `main` for test files: isolate first, then run the tests with the usual arguments and output.

use crate::enter;
use libtest_mimic::{Arguments, Failed, Trial};
use std::cell::RefCell;
use std::error::Error;
use std::panic;
use std::process::ExitCode;

/// What a test returns.
pub type TestResult = Result<(), Box<dyn Error>>;

/// A test's name and its body.
pub type Test = (&'static str, fn() -> TestResult);

thread_local! {
    /// What the rigs that ended on this thread leave for the report of a failure.
    static REMAINS: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Leaves text that is shown if the test on this thread fails.
pub(crate) fn leave(text: &str) {
    REMAINS.with_borrow_mut(|remains| remains.push_str(text));
}

/// Isolates the process and runs the tests, as the arguments of the process choose.
pub fn run_tests(tests: &[Test]) -> ExitCode {
    let arguments = Arguments::from_args();
    if !arguments.list
        && let Err(error) = enter()
    {
        eprintln!("{}", chain(&error));
        return ExitCode::FAILURE;
    }
    let trials = tests
        .iter()
        .map(|&(name, body)| Trial::test(name, move || run(body)))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn run(body: fn() -> TestResult) -> Result<(), Failed> {
    let result = panic::catch_unwind(|| body().map_err(|error| chain(&*error)));
    let remains = REMAINS.take();
    let message = match result {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(message)) => message,
        // The panic hook has printed the message and where it was.
        Err(_) => "panicked".to_owned(),
    };
    Err(format!("{message}\n{remains}").into())
}

/// An error and what caused it, one a line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str("\n  because: ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Makes the `main` of a test file out of the names of its test functions, each of the type
/// `fn() -> TestResult`. A function that is forgotten here is reported by the compiler as unused.
#[macro_export]
macro_rules! test_main {
    ($($test:ident),+ $(,)?) => {
        fn main() -> ::std::process::ExitCode {
            $crate::run_tests(&[$((stringify!($test), $test)),+])
        }
    };
}
