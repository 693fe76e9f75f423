pub(crate) fn reopen() {}
