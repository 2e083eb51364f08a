// Speaks to the endpoint through the AWS SDK for JavaScript, and prints what it saw as one JSON object.
const { EC2Client, DescribeInstancesCommand, DescribeRegionsCommand, RunInstancesCommand, TerminateInstancesCommand,
  paginateDescribeInstances, waitUntilInstanceRunning, waitUntilInstanceTerminated } = require("@aws-sdk/client-ec2");
const { STSClient, GetCallerIdentityCommand } = require("@aws-sdk/client-sts");

async function main() {
  const [imageId] = process.argv.slice(2);
  const ec2 = new EC2Client({ maxAttempts: 1 });
  const sts = new STSClient({ maxAttempts: 1 });
  const seen = {};
  seen.account = (await sts.send(new GetCallerIdentityCommand({}))).Account;
  seen.regions = (await ec2.send(new DescribeRegionsCommand({}))).Regions.map((region) => region.RegionName);

  const launched = await ec2.send(new RunInstancesCommand({
    ImageId: imageId, InstanceType: "t3.nano", MinCount: 7, MaxCount: 7,
    TagSpecifications: [{ ResourceType: "instance", Tags: [{ Key: "client", Value: "javascript" }] }],
  }));
  const ids = launched.Instances.map((instance) => instance.InstanceId);
  seen.launched = ids;
  seen.launchTimeIsDate = launched.Instances[0].LaunchTime instanceof Date;
  await waitUntilInstanceRunning({ client: ec2, maxWaitTime: 60 }, { InstanceIds: ids });

  seen.paged = [];
  const filters = [{ Name: "tag:client", Values: ["javascript"] }, { Name: "instance-state-name", Values: ["running"] }];
  for await (const page of paginateDescribeInstances({ client: ec2, pageSize: 5 }, { Filters: filters })) {
    for (const reservation of page.Reservations ?? []) {
      seen.paged.push(...reservation.Instances.map((instance) => instance.InstanceId));
    }
  }

  try {
    await ec2.send(new DescribeInstancesCommand({ InstanceIds: ["i-00000000000000000"] }));
  } catch (error) {
    seen.error = { name: error.name, status: error.$metadata.httpStatusCode, requestId: error.$metadata.requestId };
  }
  await ec2.send(new TerminateInstancesCommand({ InstanceIds: ids }));
  await waitUntilInstanceTerminated({ client: ec2, maxWaitTime: 60 }, { InstanceIds: ids });
  console.log(JSON.stringify(seen));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
