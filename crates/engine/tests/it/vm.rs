//! Jobs over machines, against an estate in software: what is restored is judged by its bytes, what is left behind by the
//! estate itself, never by the driver.

mod backup;
mod campaign;
mod restore;
mod site;
