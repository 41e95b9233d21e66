//! The daemons' loops: wait, drain, handle, act; no protocol decisions.
