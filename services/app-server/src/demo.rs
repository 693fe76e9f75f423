//! The demo application.

pub fn router() -> axum::Router {
    unimplemented!()
}
