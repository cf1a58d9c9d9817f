fn main() -> Result<(), roce_launcher::Error> {
    let job = roce_launcher::Job::init()?;
    let mut data = [1_u8];
    job.world().scope(|scope| {
        let receive = scope.receive(0, 1, &mut data)?;
        scope.wait(receive)?;
        println!("{}", data[0]); //~ E0502
        Ok(())
    })
}
