//! Documents about enrolment.

use super::*;

fn info() -> EnrolmentInfo {
    EnrolmentInfo {
        id: "0123456789ab".to_owned(),
        state: EnrolmentState::UsedUp,
        group: Some("web".parse().unwrap()),
        note: "rack 4".to_owned(),
        used: 20,
        uses: Some(20),
        created_at: time(0),
        created_by: "admin".to_owned(),
        expires_at: Some(time(3600)),
        revoked_at: None,
        last_used_at: Some(time(60)),
    }
}

document!(
    enrolment_create,
    EnrolmentCreate {
        schema: SCHEMA,
        group: Some("web".parse().unwrap()),
        expires_in_s: Some(3600),
        uses: Some(20),
        note: "rack 4".to_owned(),
    }
);

document!(
    enrolment_created,
    EnrolmentCreated {
        schema: SCHEMA,
        token: EnrolmentToken::from_random([7; 32]).reveal().to_owned(),
        enrolment: info(),
    }
);

document!(enrolment_list, EnrolmentList { schema: SCHEMA, enrolments: vec![info()] });

document!(node_group, NodeGroup { schema: SCHEMA, group: "web".parse().unwrap() });

document!(node_revoke, NodeRevoke { schema: SCHEMA, reason: "stolen".to_owned() });

document!(
    node_revoked,
    NodeRevoked {
        schema: SCHEMA,
        node: "c93c".parse().unwrap(),
        known: true,
        permits: vec!["web".parse().unwrap()],
        places: Vec::new(),
    }
);

document!(
    node_list_with_what_operators_said,
    NodeList {
        schema: SCHEMA,
        nodes: vec![NodeInfo {
            own_group: Some("default".parse().unwrap()),
            enrolled_with: Some("0123456789ab".to_owned()),
            revoked: Some(Revocation { at: time(9), by: "admin".to_owned(), reason: "stolen".to_owned() }),
            ..node_info()
        }],
    }
);
