//! Does nothing. That it is selected makes cargo choose the features of dependencies as it does for tests (`build`).

fn main() {}
