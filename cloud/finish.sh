#!/usr/bin/env bash
# Set an Auto Scaling group to 0, so that the machine that runs this ends and no other starts.
#
#     cloud/finish.sh NAME-OF-THE-GROUP
#
# cloud/spot.cfn.yaml runs it when the run is finished, or has failed too often. The machine's role must allow
# autoscaling:UpdateAutoScalingGroup on this group. The region is AWS_REGION, or the machine's own (IMDSv2).
set -euo pipefail

group=${1:?the name of the Auto Scaling group is missing}
metadata=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}/latest

# Ask the metadata service of this machine: ask METHOD PATH HEADER.
ask() {
    curl --fail --silent --show-error --noproxy '*' --max-time 5 --request "$1" --header "$3" "$metadata/$2"
}

region=${AWS_REGION:-}
if [ -z "$region" ]; then
    token=$(ask PUT api/token "X-aws-ec2-metadata-token-ttl-seconds: 60")
    region=$(ask GET meta-data/placement/region "X-aws-ec2-metadata-token: $token")
fi
aws autoscaling update-auto-scaling-group --region "$region" --auto-scaling-group-name "$group" \
    --min-size 0 --desired-capacity 0
echo "the Auto Scaling group $group is set to 0: this machine will be terminated"
