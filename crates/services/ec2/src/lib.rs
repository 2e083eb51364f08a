//! Amazon EC2: instances, volumes, images and VPC networking.
